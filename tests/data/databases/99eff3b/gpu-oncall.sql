BEGIN TRANSACTION;
CREATE TABLE artifacts (
	id INTEGER NOT NULL, 
	run_id VARCHAR(32) NOT NULL, 
	step_id VARCHAR(128) NOT NULL, 
	name VARCHAR(255) NOT NULL, 
	artifact JSON NOT NULL, 
	url TEXT NOT NULL, 
	slack_file_id VARCHAR(32), 
	stored_at DOUBLE NOT NULL, 
	swept_at DOUBLE, 
	PRIMARY KEY (id), 
	CONSTRAINT one_file_a_name UNIQUE (run_id, step_id, name), 
	FOREIGN KEY(run_id) REFERENCES runs (id)
);
INSERT INTO "artifacts" VALUES(1,'toy-2s3k','b','report.txt','{"name": "report.txt", "path": "/tmp/oldstate-99eff3b/hosts/toy/runs/toy-2s3k/report.txt", "size_bytes": 9, "sha256": "bdcf4c994585af6dd6cb1cfbff78bcc73ab27dc30a299db5bb83766ca05b5de4", "media_type": "text/plain", "source": "toy", "title": "report.txt", "inline": false}','http://127.0.0.1:8801/artifacts/toy-2s3k/b/report.txt?sig=5e504b7bd12446910a0096cd6b290bdb',NULL,1.79568992902329683299e+09,NULL);
CREATE TABLE counters (
	name VARCHAR(32) NOT NULL, 
	value BIGINT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "counters" VALUES('changes',30);
CREATE TABLE decisions (
	id INTEGER NOT NULL, 
	run_id VARCHAR(32) NOT NULL, 
	user_id VARCHAR(64) NOT NULL, 
	user JSON NOT NULL, 
	decision VARCHAR(16) NOT NULL, 
	plan_hash VARCHAR(64) NOT NULL, 
	reason TEXT NOT NULL, 
	at DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT one_word_a_person_and_plan UNIQUE (run_id, user_id, plan_hash), 
	FOREIGN KEY(run_id) REFERENCES runs (id)
);
CREATE TABLE deliveries (
	"key" VARCHAR(255) NOT NULL, 
	at DOUBLE NOT NULL, 
	PRIMARY KEY ("key")
);
CREATE TABLE host_locks (
	host VARCHAR(64) NOT NULL, 
	run_id VARCHAR(32) NOT NULL, 
	PRIMARY KEY (host), 
	FOREIGN KEY(run_id) REFERENCES runs (id)
);
INSERT INTO "host_locks" VALUES('toy','gt-hpdn');
CREATE TABLE incidents (
	id VARCHAR(32) NOT NULL, 
	host VARCHAR(64) NOT NULL, 
	title TEXT NOT NULL, 
	cause VARCHAR(64) NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	channel VARCHAR(64) NOT NULL, 
	thread_ts VARCHAR(32), 
	opened_by JSON NOT NULL, 
	opened_at DOUBLE NOT NULL, 
	closed_at DOUBLE, 
	PRIMARY KEY (id)
);
CREATE TABLE monitor_states (
	host VARCHAR(64) NOT NULL, 
	look VARCHAR(32) NOT NULL, 
	state JSON NOT NULL, 
	PRIMARY KEY (host, look)
);
CREATE TABLE run_steps (
	run_id VARCHAR(32) NOT NULL, 
	step_id VARCHAR(128) NOT NULL, 
	attempt INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	title TEXT NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	summary TEXT NOT NULL, 
	next_action TEXT NOT NULL, 
	progress DOUBLE, 
	started_at DOUBLE, 
	ended_at DOUBLE, 
	executions INTEGER NOT NULL, 
	compensating BOOLEAN NOT NULL, 
	data JSON NOT NULL, 
	findings JSON NOT NULL, 
	verdict JSON, 
	PRIMARY KEY (run_id, step_id, attempt), 
	FOREIGN KEY(run_id) REFERENCES runs (id)
);
INSERT INTO "run_steps" VALUES('tr-rz95','look',1,0,'verdict look','done','bad','',NULL,1.79568992899279236794e+09,1.79568992899784827229e+09,1,0,'{}','[]','{"verdict": "fall_back", "cause": "nccl_hang", "summary": "it hangs", "findings": [], "fallback_gpu": null, "action": ""}');
INSERT INTO "run_steps" VALUES('toy-2s3k','a',1,0,'count a','done','counted a','',NULL,1.79568992900386834141e+09,1.7956899290085549354e+09,1,0,'{"seen": []}','[]',NULL);
INSERT INTO "run_steps" VALUES('toy-2s3k','b',1,1,'file b','done','made a file','',NULL,1.79568992901576876637e+09,1.79568992902915024753e+09,1,0,'{}','[]',NULL);
INSERT INTO "run_steps" VALUES('lk-dnn4','a',1,0,'count a','done','counted a','',NULL,1.79568993351757121091e+09,1.79568993352438282962e+09,1,0,'{"seen": []}','[]',NULL);
INSERT INTO "run_steps" VALUES('lk-dnn4','b',1,1,'hold b','running','holding','',0.5,1.7956899335333755016e+09,NULL,1,0,'{}','[]',NULL);
CREATE TABLE runs (
	id VARCHAR(32) NOT NULL, 
	action VARCHAR(32) NOT NULL, 
	host VARCHAR(64) NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	changes_host BOOLEAN NOT NULL, 
	requester JSON NOT NULL, 
	place JSON NOT NULL, 
	options JSON NOT NULL, 
	"plan" JSON, 
	plan_hash VARCHAR(64) NOT NULL, 
	problems JSON NOT NULL, 
	message_ts VARCHAR(32), 
	incident_id VARCHAR(32), 
	dedupe_key VARCHAR(255) NOT NULL, 
	workflow_id VARCHAR(64) NOT NULL, 
	created_at DOUBLE NOT NULL, 
	started_at DOUBLE, 
	ended_at DOUBLE, 
	gate_expires_at DOUBLE, 
	reminded_at DOUBLE, 
	stop_requested JSON, 
	outcome TEXT NOT NULL, 
	next_action TEXT NOT NULL, 
	version BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (dedupe_key)
);
INSERT INTO "runs" VALUES('tr-rz95','triage','toy','succeeded',0,'{"id": "U_ONCALL", "name": "oncall"}','{"channel": "C_INCIDENTS", "thread_ts": null}','{"script": "verdict:look"}','{"version": 1, "action": "triage", "host": "toy", "title": "a toy", "steps": [{"id": "look", "verb": "toy.verdict", "title": "verdict look", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}], "gate": null, "alternatives": {}, "compensation": [], "losses": "", "warnings": [], "options": {"qps": 1, "cause": ""}}','1030681ece40','[]',NULL,NULL,'bc64b3f297c789bb','tr-rz95',1.79568992894847130779e+09,1.79568992898852705956e+09,1.79568992900605893135e+09,NULL,NULL,NULL,'bad','',11);
INSERT INTO "runs" VALUES('toy-2s3k','toy','toy','succeeded',1,'{"id": "U_ONCALL", "name": "oncall"}','{"channel": "C_INCIDENTS", "thread_ts": null}','{"script": "count:a file:b"}','{"version": 1, "action": "toy", "host": "toy", "title": "a toy", "steps": [{"id": "a", "verb": "toy.count", "title": "count a", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}, {"id": "b", "verb": "toy.file", "title": "file b", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}], "gate": null, "alternatives": {}, "compensation": [], "losses": "", "warnings": [], "options": {"qps": 1, "cause": ""}}','c58d8a57d085','[]',NULL,NULL,'03580ffb7003cb56','toy-2s3k',1.79568992896244025228e+09,1.79568992899534702299e+09,1.79568992903613209718e+09,NULL,NULL,NULL,'made a file','',15);
INSERT INTO "runs" VALUES('gt-hpdn','gated','toy','waiting',1,'{"id": "U_ONCALL", "name": "oncall"}','{"channel": "C_INCIDENTS", "thread_ts": null}','{"script": "count:g"}','{"version": 1, "action": "gated", "host": "toy", "title": "a toy", "steps": [{"id": "g", "verb": "toy.count", "title": "count g", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}], "gate": {"approvals": 1, "approvers": "approver", "expires_s": 86400.0, "remind_before_s": 300.0, "reason": "The settings ask for a person of the role approver before gated changes anything."}, "alternatives": {}, "compensation": [], "losses": "", "warnings": [], "options": {"qps": 1, "cause": "nccl_hang"}}','2cb04acdb4b4','[]',NULL,NULL,'f78828c1c163686c','gt-hpdn',1.79568993345004558562e+09,NULL,NULL,1.79577633348694467542e+09,NULL,NULL,'','',18);
INSERT INTO "runs" VALUES('lk-dnn4','look','toy','running',0,'{"id": "U_ONCALL", "name": "oncall"}','{"channel": "C_INCIDENTS", "thread_ts": null}','{"script": "count:a hold:b count:c"}','{"version": 1, "action": "look", "host": "toy", "title": "a toy", "steps": [{"id": "a", "verb": "toy.count", "title": "count a", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}, {"id": "b", "verb": "toy.hold", "title": "hold b", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}, {"id": "c", "verb": "toy.count", "title": "count c", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}], "gate": null, "alternatives": {}, "compensation": [], "losses": "", "warnings": [], "options": {"qps": 1, "cause": "nccl_hang"}}','d7419e2aee0e','[]',NULL,NULL,'b5498f35066c5ce0','lk-dnn4',1.79568993347328543664e+09,1.79568993351485276226e+09,NULL,NULL,NULL,NULL,'','',30);
CREATE TABLE signals (
	id INTEGER NOT NULL, 
	run_id VARCHAR(32) NOT NULL, 
	signal VARCHAR(16) NOT NULL, 
	"by" JSON NOT NULL, 
	at DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(run_id) REFERENCES runs (id)
);
CREATE TABLE timeline (
	id INTEGER NOT NULL, 
	at DOUBLE NOT NULL, 
	incident_id VARCHAR(32), 
	run_id VARCHAR(32), 
	host VARCHAR(64) NOT NULL, 
	actor VARCHAR(128) NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	text TEXT NOT NULL, 
	data JSON NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "timeline" VALUES(1,1.79568992894847130779e+09,NULL,'tr-rz95','toy','U_ONCALL','run.start','oncall started triage','{"options": {"script": "verdict:look"}}');
INSERT INTO "timeline" VALUES(2,1.79568992896244025228e+09,NULL,'toy-2s3k','toy','U_ONCALL','run.start','oncall started toy','{"options": {"script": "count:a file:b"}}');
INSERT INTO "timeline" VALUES(3,1.79568992897154307364e+09,NULL,'tr-rz95','toy','bot','run.queued','plan 1030681ece40 with 1 steps','{}');
INSERT INTO "timeline" VALUES(4,1.79568992897757434851e+09,NULL,'toy-2s3k','toy','bot','run.queued','plan c58d8a57d085 with 2 steps','{}');
INSERT INTO "timeline" VALUES(5,1.79568992898873376843e+09,NULL,'tr-rz95','toy','bot','run.running','at work on toy','{}');
INSERT INTO "timeline" VALUES(6,1.79568992899784827229e+09,NULL,'tr-rz95','toy','bot','step.done','look: bad','{"step": "look", "attempt": 1, "seconds": 0.0}');
INSERT INTO "timeline" VALUES(7,1.79568992899539923665e+09,NULL,'toy-2s3k','toy','bot','run.running','at work on toy','{}');
INSERT INTO "timeline" VALUES(8,1.7956899290085549354e+09,NULL,'toy-2s3k','toy','bot','step.done','a: counted a','{"step": "a", "attempt": 1, "seconds": 0.001}');
INSERT INTO "timeline" VALUES(9,1.79568992900605893135e+09,NULL,'tr-rz95','toy','bot','run.succeeded','bad','{}');
INSERT INTO "timeline" VALUES(10,1.79568992902564883232e+09,NULL,'toy-2s3k','toy','bot','artifact.stored','report.txt (9 bytes)','{"step": "b", "name": "report.txt", "sha256": "bdcf4c994585af6dd6cb1cfbff78bcc73ab27dc30a299db5bb83766ca05b5de4"}');
INSERT INTO "timeline" VALUES(11,1.79568992902915024753e+09,NULL,'toy-2s3k','toy','bot','step.done','b: made a file','{"step": "b", "attempt": 1, "seconds": 0.0}');
INSERT INTO "timeline" VALUES(12,1.79568992903613209718e+09,NULL,'toy-2s3k','toy','bot','run.succeeded','made a file','{}');
INSERT INTO "timeline" VALUES(13,1.79568993345004558562e+09,NULL,'gt-hpdn','toy','U_ONCALL','run.start','oncall started gated','{"options": {"script": "count:g"}}');
INSERT INTO "timeline" VALUES(14,1.79568993347328543664e+09,NULL,'lk-dnn4','toy','U_ONCALL','run.start','oncall started look','{"options": {"script": "count:a hold:b count:c"}}');
INSERT INTO "timeline" VALUES(15,1.79568993348723959921e+09,NULL,'gt-hpdn','toy','bot','run.waiting','plan 2cb04acdb4b4 with 1 steps','{}');
INSERT INTO "timeline" VALUES(16,1.79568993349771213532e+09,NULL,'lk-dnn4','toy','bot','run.queued','plan d7419e2aee0e with 3 steps','{}');
INSERT INTO "timeline" VALUES(17,1.79568993351490354543e+09,NULL,'lk-dnn4','toy','bot','run.running','at work on toy','{}');
INSERT INTO "timeline" VALUES(18,1.79568993352438282962e+09,NULL,'lk-dnn4','toy','bot','step.done','a: counted a','{"step": "a", "attempt": 1, "seconds": 0.001}');
CREATE TABLE untold_alarms (
	id VARCHAR(32) NOT NULL, 
	alarm JSON NOT NULL, 
	at DOUBLE NOT NULL, 
	PRIMARY KEY (id)
);
CREATE INDEX runs_by_status ON runs (status);
CREATE INDEX runs_by_action_and_host ON runs (action, host, created_at);
CREATE INDEX ix_runs_version ON runs (version);
CREATE INDEX runs_by_incident ON runs (incident_id);
CREATE UNIQUE INDEX one_open_incident_a_host ON incidents (host) WHERE status = 'open';
CREATE INDEX ix_timeline_incident_id ON timeline (incident_id);
CREATE INDEX ix_timeline_run_id ON timeline (run_id);
CREATE INDEX ix_signals_run_id ON signals (run_id);
COMMIT;
