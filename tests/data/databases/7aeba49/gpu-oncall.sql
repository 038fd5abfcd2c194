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
INSERT INTO "artifacts" VALUES(1,'toy-v6j5','b','report.txt','{"name": "report.txt", "path": "/tmp/oldstate-7aeba49/hosts/toy/runs/toy-v6j5/report.txt", "size_bytes": 9, "sha256": "bdcf4c994585af6dd6cb1cfbff78bcc73ab27dc30a299db5bb83766ca05b5de4", "media_type": "text/plain", "source": "toy", "title": "report.txt", "inline": false}','http://127.0.0.1:8801/artifacts/toy-v6j5/b/report.txt?sig=a3a76d68ff03cb057f09ee0d8337ccc7',NULL,1.79568993797799777989e+09,NULL);
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
INSERT INTO "host_locks" VALUES('toy','gt-gr32');
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
INSERT INTO "run_steps" VALUES('tr-xzsk','look',1,0,'verdict look','done','bad','',NULL,1.79568993793141841886e+09,1.79568993794083833692e+09,1,0,'{}','[]','{"verdict": "fall_back", "cause": "nccl_hang", "summary": "it hangs", "findings": [], "fallback_gpu": null, "action": ""}');
INSERT INTO "run_steps" VALUES('toy-v6j5','a',1,0,'count a','done','counted a','',NULL,1.79568993794419550892e+09,1.79568993795709514619e+09,1,0,'{"seen": []}','[]',NULL);
INSERT INTO "run_steps" VALUES('toy-v6j5','b',1,1,'file b','done','made a file','',NULL,1.79568993797327375412e+09,1.79568993798323178288e+09,1,0,'{}','[]',NULL);
INSERT INTO "run_steps" VALUES('lk-d3vh','a',1,0,'count a','done','counted a','',NULL,1.79568994242431378364e+09,1.79568994242981481556e+09,1,0,'{"seen": []}','[]',NULL);
INSERT INTO "run_steps" VALUES('lk-d3vh','b',1,1,'hold b','running','holding','',0.5,1.79568994243857693671e+09,NULL,1,0,'{}','[]',NULL);
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
INSERT INTO "runs" VALUES('tr-xzsk','triage','toy','succeeded',0,'{"id": "U_ONCALL", "name": "oncall"}','{"channel": "C_INCIDENTS", "thread_ts": null}','{"script": "verdict:look"}','{"version": 1, "action": "triage", "host": "toy", "title": "a toy", "steps": [{"id": "look", "verb": "toy.verdict", "title": "verdict look", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}], "gate": null, "alternatives": {}, "compensation": [], "losses": "", "warnings": [], "options": {"qps": 1, "cause": "", "fresh": false}}','15ebea14f2e0','[]',NULL,NULL,'68c313d55ee3f9a9','tr-xzsk',1.79568993787386608118e+09,1.79568993792641210557e+09,1.79568993795581603048e+09,NULL,NULL,NULL,'bad','',10);
INSERT INTO "runs" VALUES('toy-v6j5','toy','toy','succeeded',1,'{"id": "U_ONCALL", "name": "oncall"}','{"channel": "C_INCIDENTS", "thread_ts": null}','{"script": "count:a file:b"}','{"version": 1, "action": "toy", "host": "toy", "title": "a toy", "steps": [{"id": "a", "verb": "toy.count", "title": "count a", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}, {"id": "b", "verb": "toy.file", "title": "file b", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}], "gate": null, "alternatives": {}, "compensation": [], "losses": "", "warnings": [], "options": {"qps": 1, "cause": "", "fresh": false}}','9e2771930f87','[]',NULL,NULL,'388f53d8ab4edfc8','toy-v6j5',1.79568993788865613938e+09,1.79568993793697166444e+09,1.7956899379911086559e+09,NULL,NULL,NULL,'made a file','',15);
INSERT INTO "runs" VALUES('gt-gr32','gated','toy','waiting',1,'{"id": "U_ONCALL", "name": "oncall"}','{"channel": "C_INCIDENTS", "thread_ts": null}','{"script": "count:g"}','{"version": 1, "action": "gated", "host": "toy", "title": "a toy", "steps": [{"id": "g", "verb": "toy.count", "title": "count g", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}], "gate": {"approvals": 1, "approvers": "approver", "expires_s": 86400.0, "remind_before_s": 300.0, "reason": "The settings ask for a person of the role approver before gated changes anything."}, "alternatives": {}, "compensation": [], "losses": "", "warnings": [], "options": {"qps": 1, "cause": "nccl_hang", "fresh": true}}','0c5ff60b1920','[]',NULL,NULL,'abe9d670ab296a35','gt-gr32',1.79568994236231875422e+09,NULL,NULL,1.79577634239155840877e+09,NULL,NULL,'','',18);
INSERT INTO "runs" VALUES('lk-d3vh','look','toy','running',0,'{"id": "U_ONCALL", "name": "oncall"}','{"channel": "C_INCIDENTS", "thread_ts": null}','{"script": "count:a hold:b count:c"}','{"version": 1, "action": "look", "host": "toy", "title": "a toy", "steps": [{"id": "a", "verb": "toy.count", "title": "count a", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}, {"id": "b", "verb": "toy.hold", "title": "hold b", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}, {"id": "c", "verb": "toy.count", "title": "count c", "args": {}, "details": [], "timeout_s": 60.0, "expected_s": null, "mutates": true, "on_failure": "stop", "group": null}], "gate": null, "alternatives": {}, "compensation": [], "losses": "", "warnings": [], "options": {"qps": 1, "cause": "nccl_hang", "fresh": true}}','95c78037b886','[]',NULL,NULL,'cbe3e61b893e8154','lk-d3vh',1.79568994238151144983e+09,1.79568994242111945147e+09,NULL,NULL,NULL,NULL,'','',30);
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
INSERT INTO "timeline" VALUES(1,1.79568993787386608118e+09,NULL,'tr-xzsk','toy','U_ONCALL','run.start','oncall started triage','{"options": {"script": "verdict:look"}}');
INSERT INTO "timeline" VALUES(2,1.79568993788865613938e+09,NULL,'toy-v6j5','toy','U_ONCALL','run.start','oncall started toy','{"options": {"script": "count:a file:b"}}');
INSERT INTO "timeline" VALUES(3,1.79568993790218400961e+09,NULL,'tr-xzsk','toy','bot','run.queued','plan 15ebea14f2e0 with 1 steps','{}');
INSERT INTO "timeline" VALUES(4,1.79568993791139030462e+09,NULL,'toy-v6j5','toy','bot','run.queued','plan 9e2771930f87 with 2 steps','{}');
INSERT INTO "timeline" VALUES(5,1.79568993792657971382e+09,NULL,'tr-xzsk','toy','bot','run.running','at work on toy','{}');
INSERT INTO "timeline" VALUES(6,1.79568993793884181973e+09,NULL,'toy-v6j5','toy','bot','run.running','at work on toy','{}');
INSERT INTO "timeline" VALUES(7,1.79568993794083833692e+09,NULL,'tr-xzsk','toy','bot','step.done','look: bad','{"step": "look", "attempt": 1, "seconds": 0.0}');
INSERT INTO "timeline" VALUES(8,1.79568993795581603048e+09,NULL,'tr-xzsk','toy','bot','run.succeeded','bad','{}');
INSERT INTO "timeline" VALUES(9,1.79568993795709514619e+09,NULL,'toy-v6j5','toy','bot','step.done','a: counted a','{"step": "a", "attempt": 1, "seconds": 0.002}');
INSERT INTO "timeline" VALUES(10,1.79568993798084616656e+09,NULL,'toy-v6j5','toy','bot','artifact.stored','report.txt (9 bytes)','{"step": "b", "name": "report.txt", "sha256": "bdcf4c994585af6dd6cb1cfbff78bcc73ab27dc30a299db5bb83766ca05b5de4"}');
INSERT INTO "timeline" VALUES(11,1.79568993798323178288e+09,NULL,'toy-v6j5','toy','bot','step.done','b: made a file','{"step": "b", "attempt": 1, "seconds": 0.001}');
INSERT INTO "timeline" VALUES(12,1.7956899379911086559e+09,NULL,'toy-v6j5','toy','bot','run.succeeded','made a file','{}');
INSERT INTO "timeline" VALUES(13,1.79568994236231875422e+09,NULL,'gt-gr32','toy','U_ONCALL','run.start','oncall started gated','{"options": {"script": "count:g"}}');
INSERT INTO "timeline" VALUES(14,1.79568994238151144983e+09,NULL,'lk-d3vh','toy','U_ONCALL','run.start','oncall started look','{"options": {"script": "count:a hold:b count:c"}}');
INSERT INTO "timeline" VALUES(15,1.79568994239260149004e+09,NULL,'gt-gr32','toy','bot','run.waiting','plan 0c5ff60b1920 with 1 steps','{}');
INSERT INTO "timeline" VALUES(16,1.79568994240703511244e+09,NULL,'lk-d3vh','toy','bot','run.queued','plan 95c78037b886 with 3 steps','{}');
INSERT INTO "timeline" VALUES(17,1.79568994242119550708e+09,NULL,'lk-d3vh','toy','bot','run.running','at work on toy','{}');
INSERT INTO "timeline" VALUES(18,1.79568994242981481556e+09,NULL,'lk-d3vh','toy','bot','step.done','a: counted a','{"step": "a", "attempt": 1, "seconds": 0.0}');
CREATE TABLE untold_alarms (
	id VARCHAR(32) NOT NULL, 
	alarm JSON NOT NULL, 
	at DOUBLE NOT NULL, 
	PRIMARY KEY (id)
);
CREATE INDEX ix_runs_version ON runs (version);
CREATE INDEX runs_by_status ON runs (status);
CREATE INDEX runs_by_incident ON runs (incident_id);
CREATE INDEX runs_by_action_and_host ON runs (action, host, created_at);
CREATE UNIQUE INDEX one_open_incident_a_host ON incidents (host) WHERE status = 'open';
CREATE INDEX ix_timeline_incident_id ON timeline (incident_id);
CREATE INDEX ix_timeline_run_id ON timeline (run_id);
CREATE INDEX ix_signals_run_id ON signals (run_id);
COMMIT;
