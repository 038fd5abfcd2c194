BEGIN TRANSACTION;
CREATE TABLE application_versions (
    version_id TEXT NOT NULL PRIMARY KEY,
    version_name TEXT NOT NULL UNIQUE,
    version_timestamp INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000),
    created_at INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000)
, "application_name" TEXT DEFAULT NULL);
INSERT INTO "application_versions" VALUES('f7fb035c-33fa-4843-8791-00bb2c0ed5be','1',1795689937000,1795689937000,'gpu-oncall-bot');
CREATE TABLE dbos_migrations (version INTEGER NOT NULL PRIMARY KEY);
INSERT INTO "dbos_migrations" VALUES(125);
CREATE TABLE notifications (
    message_uuid TEXT NOT NULL DEFAULT (hex(randomblob(16))) PRIMARY KEY,
    destination_uuid TEXT NOT NULL,
    topic TEXT,
    message TEXT NOT NULL,
    created_at_epoch_ms INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000), "serialization" TEXT DEFAULT NULL, "consumed" BOOLEAN NOT NULL DEFAULT FALSE, consumed_by_function_id INTEGER,
    FOREIGN KEY (destination_uuid) REFERENCES workflow_status(workflow_uuid) 
        ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE TABLE "operation_outputs" (
    workflow_uuid TEXT NOT NULL,
    function_id INTEGER NOT NULL,
    function_name TEXT NOT NULL DEFAULT '',
    output TEXT,
    error TEXT,
    child_workflow_id TEXT,
    started_at_epoch_ms INTEGER,
    completed_at_epoch_ms INTEGER,
    serialization TEXT,
    application_name TEXT DEFAULT NULL,
    retention_timestamp INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000),
    PRIMARY KEY (workflow_uuid, function_id)
);
INSERT INTO "operation_outputs" VALUES('tr-xzsk',1,'plan','"go"',NULL,NULL,1795689937892,1795689937906,'portable_json','gpu-oncall-bot',1795689937000);
INSERT INTO "operation_outputs" VALUES('tr-xzsk',2,'gpu_oncall.host',NULL,NULL,'tr-xzsk.host',1795689937912,1795689937915,NULL,'gpu-oncall-bot',1795689937000);
INSERT INTO "operation_outputs" VALUES('toy-v6j5',1,'plan','"go"',NULL,NULL,1795689937905,1795689937918,'portable_json','gpu-oncall-bot',1795689937000);
INSERT INTO "operation_outputs" VALUES('toy-v6j5',2,'gpu_oncall.host',NULL,NULL,'toy-v6j5.host',1795689937921,1795689937925,NULL,'gpu-oncall-bot',1795689937000);
INSERT INTO "operation_outputs" VALUES('tr-xzsk.host',1,'advance','{"ended":false,"step":"look","attempt":1,"status":"done"}',NULL,NULL,1795689937918,1795689937947,'portable_json','gpu-oncall-bot',1795689937000);
INSERT INTO "operation_outputs" VALUES('tr-xzsk.host',2,'advance','{"ended":true,"status":"succeeded"}',NULL,NULL,1795689937951,1795689937958,'portable_json','gpu-oncall-bot',1795689937000);
INSERT INTO "operation_outputs" VALUES('tr-xzsk',3,'DBOS.getResult','null',NULL,'tr-xzsk.host',1795689937917,1795689937964,'portable_json','gpu-oncall-bot',1795689937000);
INSERT INTO "operation_outputs" VALUES('toy-v6j5.host',1,'advance','{"ended":false,"step":"a","attempt":1,"status":"done"}',NULL,NULL,1795689937928,1795689937967,'portable_json','gpu-oncall-bot',1795689937000);
INSERT INTO "operation_outputs" VALUES('toy-v6j5.host',2,'advance','{"ended":false,"step":"b","attempt":1,"status":"done"}',NULL,NULL,1795689937969,1795689937985,'portable_json','gpu-oncall-bot',1795689937000);
INSERT INTO "operation_outputs" VALUES('toy-v6j5.host',3,'advance','{"ended":true,"status":"succeeded"}',NULL,NULL,1795689937987,1795689937994,'portable_json','gpu-oncall-bot',1795689937000);
INSERT INTO "operation_outputs" VALUES('toy-v6j5',3,'DBOS.getResult','null',NULL,'toy-v6j5.host',1795689937926,1795689937999,'portable_json','gpu-oncall-bot',1795689938000);
INSERT INTO "operation_outputs" VALUES('gt-gr32',1,'plan','"gate"',NULL,NULL,1795689942382,1795689942398,'portable_json','gpu-oncall-bot',1795689942000);
INSERT INTO "operation_outputs" VALUES('lk-d3vh',1,'plan','"go"',NULL,NULL,1795689942398,1795689942411,'portable_json','gpu-oncall-bot',1795689942000);
INSERT INTO "operation_outputs" VALUES('lk-d3vh',2,'gpu_oncall.host',NULL,NULL,'lk-d3vh.host',1795689942413,1795689942415,NULL,'gpu-oncall-bot',1795689942000);
INSERT INTO "operation_outputs" VALUES('lk-d3vh.host',1,'advance','{"ended":false,"step":"a","attempt":1,"status":"done"}',NULL,NULL,1795689942417,1795689942432,'portable_json','gpu-oncall-bot',1795689942000);
CREATE TABLE queues (
    queue_id TEXT PRIMARY KEY DEFAULT (hex(randomblob(16))),
    name TEXT NOT NULL UNIQUE,
    concurrency INTEGER,
    worker_concurrency INTEGER,
    rate_limit_max INTEGER,
    rate_limit_period_sec REAL,
    priority_enabled BOOLEAN NOT NULL DEFAULT FALSE,
    partition_queue BOOLEAN NOT NULL DEFAULT FALSE,
    polling_interval_sec REAL NOT NULL DEFAULT 1.0,
    created_at INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000),
    updated_at INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000)
, "application_name" TEXT DEFAULT NULL, "partition_concurrency" INTEGER DEFAULT NULL, "partition_worker_concurrency" INTEGER DEFAULT NULL, "partition_rate_limit_max" INTEGER DEFAULT NULL, "partition_rate_limit_period_sec" REAL DEFAULT NULL);
CREATE TABLE streams (
    workflow_uuid TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    "offset" INTEGER NOT NULL, function_id INTEGER NOT NULL DEFAULT 0, "serialization" TEXT DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, key, "offset"),
    FOREIGN KEY (workflow_uuid) REFERENCES workflow_status(workflow_uuid) 
        ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE TABLE workflow_events (
    workflow_uuid TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL, "serialization" TEXT DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, key),
    FOREIGN KEY (workflow_uuid) REFERENCES workflow_status(workflow_uuid) 
        ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE TABLE workflow_events_history (
    workflow_uuid TEXT NOT NULL,
    function_id INTEGER NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL, "serialization" TEXT DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, function_id, key),
    FOREIGN KEY (workflow_uuid) REFERENCES workflow_status(workflow_uuid)
        ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE TABLE workflow_input (
    workflow_uuid TEXT NOT NULL PRIMARY KEY,
    inputs TEXT,
    retention_timestamp INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000)
);
INSERT INTO "workflow_input" VALUES('tr-xzsk','{"namedArgs":{},"positionalArgs":["tr-xzsk"]}',1795689937000);
INSERT INTO "workflow_input" VALUES('toy-v6j5','{"namedArgs":{},"positionalArgs":["toy-v6j5"]}',1795689937000);
INSERT INTO "workflow_input" VALUES('tr-xzsk.host','{"namedArgs":{},"positionalArgs":["tr-xzsk"]}',1795689937000);
INSERT INTO "workflow_input" VALUES('toy-v6j5.host','{"namedArgs":{},"positionalArgs":["toy-v6j5"]}',1795689937000);
INSERT INTO "workflow_input" VALUES('gt-gr32','{"namedArgs":{},"positionalArgs":["gt-gr32"]}',1795689942000);
INSERT INTO "workflow_input" VALUES('lk-d3vh','{"namedArgs":{},"positionalArgs":["lk-d3vh"]}',1795689942000);
INSERT INTO "workflow_input" VALUES('lk-d3vh.host','{"namedArgs":{},"positionalArgs":["lk-d3vh"]}',1795689942000);
CREATE TABLE workflow_output (
    workflow_uuid TEXT NOT NULL PRIMARY KEY,
    output TEXT,
    error TEXT,
    retention_timestamp INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000)
);
INSERT INTO "workflow_output" VALUES('tr-xzsk.host','null',NULL,1795689937000);
INSERT INTO "workflow_output" VALUES('tr-xzsk','null',NULL,1795689937000);
INSERT INTO "workflow_output" VALUES('toy-v6j5.host','null',NULL,1795689937000);
INSERT INTO "workflow_output" VALUES('toy-v6j5','null',NULL,1795689938000);
CREATE TABLE workflow_schedules (
    schedule_id TEXT PRIMARY KEY,
    schedule_name TEXT NOT NULL UNIQUE,
    workflow_name TEXT NOT NULL,
    workflow_class_name TEXT,
    schedule TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'ACTIVE',
    context TEXT NOT NULL
, "last_fired_at" TEXT DEFAULT NULL, "automatic_backfill" BOOLEAN NOT NULL DEFAULT FALSE, "cron_timezone" TEXT DEFAULT NULL, "queue_name" TEXT DEFAULT NULL, "application_name" TEXT DEFAULT NULL);
CREATE TABLE workflow_status (
    workflow_uuid TEXT PRIMARY KEY,
    status TEXT,
    name TEXT,
    authenticated_user TEXT,
    assumed_role TEXT,
    authenticated_roles TEXT,
    request TEXT,
    output TEXT,
    error TEXT,
    executor_id TEXT,
    created_at INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000),
    updated_at INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000),
    application_version TEXT,
    application_id TEXT,
    class_name TEXT DEFAULT NULL,
    config_name TEXT DEFAULT NULL,
    recovery_attempts INTEGER DEFAULT 0,
    queue_name TEXT,
    workflow_timeout_ms INTEGER,
    workflow_deadline_epoch_ms INTEGER,
    inputs TEXT,
    started_at_epoch_ms INTEGER,
    deduplication_id TEXT,
    priority INTEGER NOT NULL DEFAULT 0
, queue_partition_key TEXT, forked_from TEXT, "owner_xid" TEXT DEFAULT NULL, "parent_workflow_id" TEXT DEFAULT NULL, "serialization" TEXT DEFAULT NULL, "delay_until_epoch_ms" BIGINT DEFAULT NULL, "was_forked_from" BOOLEAN NOT NULL DEFAULT FALSE, "rate_limited" BOOLEAN NOT NULL DEFAULT FALSE, "completed_at" BIGINT, "attributes" TEXT, "schedule_name" TEXT, "debounce_deadline_epoch_ms" BIGINT DEFAULT NULL, "is_debounced" BOOLEAN NOT NULL DEFAULT FALSE, "application_name" TEXT DEFAULT NULL, "creator_xid" TEXT DEFAULT NULL);
INSERT INTO "workflow_status" VALUES('tr-xzsk','SUCCESS','gpu_oncall.run',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689937000,1795689937000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,'portable_json',NULL,0,0,1795689937000,'null',NULL,NULL,0,'gpu-oncall-bot','3f2ec060-0ecc-4a51-9a1e-94447c4918ab');
INSERT INTO "workflow_status" VALUES('toy-v6j5','SUCCESS','gpu_oncall.run',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689937000,1795689938000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,'portable_json',NULL,0,0,1795689938000,'null',NULL,NULL,0,'gpu-oncall-bot','189b2621-12ce-4bf6-b517-e84f241061f7');
INSERT INTO "workflow_status" VALUES('tr-xzsk.host','SUCCESS','gpu_oncall.host',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689937000,1795689937000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,'tr-xzsk','portable_json',NULL,0,0,1795689937000,'null',NULL,NULL,0,'gpu-oncall-bot','d178ebb7-20d2-48bf-9668-10c60422a188');
INSERT INTO "workflow_status" VALUES('toy-v6j5.host','SUCCESS','gpu_oncall.host',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689937000,1795689937000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,'toy-v6j5','portable_json',NULL,0,0,1795689937000,'null',NULL,NULL,0,'gpu-oncall-bot','58c385dd-dc49-4f5b-9c12-6c8d41c57877');
INSERT INTO "workflow_status" VALUES('gt-gr32','PENDING','gpu_oncall.run',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689942000,1795689942000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'a0f0d2b3-58a6-4f23-8582-9dd9e96d68c0',NULL,'portable_json',NULL,0,0,NULL,'null',NULL,NULL,0,'gpu-oncall-bot','a0f0d2b3-58a6-4f23-8582-9dd9e96d68c0');
INSERT INTO "workflow_status" VALUES('lk-d3vh','PENDING','gpu_oncall.run',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689942000,1795689942000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'b1cbcfe8-9e2b-499e-b71b-19fe1d49a522',NULL,'portable_json',NULL,0,0,NULL,'null',NULL,NULL,0,'gpu-oncall-bot','b1cbcfe8-9e2b-499e-b71b-19fe1d49a522');
INSERT INTO "workflow_status" VALUES('lk-d3vh.host','PENDING','gpu_oncall.host',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689942000,1795689942000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'6350bc5d-8c23-4b6c-bbd3-066aaeaecb85','lk-d3vh','portable_json',NULL,0,0,NULL,'null',NULL,NULL,0,'gpu-oncall-bot','6350bc5d-8c23-4b6c-bbd3-066aaeaecb85');
CREATE INDEX workflow_status_created_at_index ON workflow_status (created_at);
CREATE INDEX idx_workflow_topic ON notifications (destination_uuid, topic);
CREATE INDEX "idx_workflow_status_delayed" ON "workflow_status" ("delay_until_epoch_ms") WHERE status = 'DELAYED';
CREATE INDEX "idx_workflow_status_forked_from" ON "workflow_status" ("forked_from") WHERE "forked_from" IS NOT NULL;
CREATE INDEX "idx_workflow_status_parent_workflow_id" ON "workflow_status" ("parent_workflow_id") WHERE "parent_workflow_id" IS NOT NULL;
CREATE UNIQUE INDEX "uq_workflow_status_dedup_id" ON "workflow_status" ("queue_name", "deduplication_id") WHERE "deduplication_id" IS NOT NULL;
CREATE INDEX "idx_workflow_status_pending" ON "workflow_status" ("created_at") WHERE "status" = 'PENDING';
CREATE INDEX "idx_workflow_status_failed" ON "workflow_status" ("status", "created_at") WHERE "status" IN ('ERROR', 'CANCELLED', 'MAX_RECOVERY_ATTEMPTS_EXCEEDED');
CREATE INDEX "idx_workflow_status_rate_limited" ON "workflow_status" ("queue_name", "started_at_epoch_ms") WHERE "rate_limited" = TRUE;
CREATE INDEX "idx_workflow_status_completed_at" ON "workflow_status" ("completed_at") WHERE "completed_at" IS NOT NULL;
CREATE INDEX "idx_workflow_status_started_at" ON "workflow_status" ("started_at_epoch_ms") WHERE "started_at_epoch_ms" IS NOT NULL;
CREATE INDEX "idx_workflow_status_schedule_name" ON "workflow_status" ("schedule_name") WHERE "schedule_name" IS NOT NULL;
CREATE UNIQUE INDEX "uq_application_versions_owner_version"
    ON application_versions ("application_name", "version_name")
    WHERE "application_name" IS NOT NULL;
CREATE UNIQUE INDEX "uq_application_versions_unclaimed_version"
    ON application_versions ("version_name")
    WHERE "application_name" IS NULL;
CREATE INDEX idx_workflow_input_retention
    ON workflow_input (retention_timestamp);
CREATE INDEX idx_workflow_output_retention
    ON workflow_output (retention_timestamp);
CREATE INDEX idx_operation_outputs_retention
    ON operation_outputs (retention_timestamp);
CREATE INDEX "idx_workflow_status_in_flight_v2" ON "workflow_status" ("queue_name", "status", "priority", "created_at", "application_name") WHERE "status" IN ('ENQUEUED', 'PENDING');
CREATE INDEX "idx_workflow_status_partition_dequeue_v3" ON "workflow_status" ("queue_name", "status", "queue_partition_key", "priority", "created_at", "workflow_uuid", "application_name") WHERE "status" IN ('ENQUEUED', 'PENDING') AND "queue_partition_key" IS NOT NULL;
CREATE INDEX "idx_operation_outputs_completed_at_function_name_v2" ON "operation_outputs" ("completed_at_epoch_ms", "function_name", "application_name");
CREATE INDEX "idx_workflow_status_deadline" ON "workflow_status" ("workflow_deadline_epoch_ms") WHERE "status" IN ('ENQUEUED', 'PENDING', 'DELAYED') AND "workflow_deadline_epoch_ms" IS NOT NULL;
CREATE INDEX "idx_application_versions_timestamp" ON "application_versions" ("version_timestamp" DESC);
CREATE INDEX "idx_application_versions_owner_timestamp" ON "application_versions" ("application_name", "version_timestamp" DESC);
COMMIT;
