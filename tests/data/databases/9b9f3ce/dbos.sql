BEGIN TRANSACTION;
CREATE TABLE application_versions (
    version_id TEXT NOT NULL PRIMARY KEY,
    version_name TEXT NOT NULL UNIQUE,
    version_timestamp INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000),
    created_at INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000)
, "application_name" TEXT DEFAULT NULL);
INSERT INTO "application_versions" VALUES('f8ba30cd-dec2-41d1-82dc-46474c6e523c','1',1795689947000,1795689947000,'gpu-oncall-bot');
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
INSERT INTO "operation_outputs" VALUES('tr-38pr',1,'plan','"go"',NULL,NULL,1795689947243,1795689947254,'portable_json','gpu-oncall-bot',1795689947000);
INSERT INTO "operation_outputs" VALUES('tr-38pr',2,'gpu_oncall.host',NULL,NULL,'tr-38pr.host',1795689947259,1795689947262,NULL,'gpu-oncall-bot',1795689947000);
INSERT INTO "operation_outputs" VALUES('toy-9gzp',1,'plan','"go"',NULL,NULL,1795689947253,1795689947264,'portable_json','gpu-oncall-bot',1795689947000);
INSERT INTO "operation_outputs" VALUES('toy-9gzp',2,'gpu_oncall.host',NULL,NULL,'toy-9gzp.host',1795689947267,1795689947269,NULL,'gpu-oncall-bot',1795689947000);
INSERT INTO "operation_outputs" VALUES('tr-38pr.host',1,'advance','{"ended":false,"step":"look","attempt":1,"status":"done"}',NULL,NULL,1795689947265,1795689947285,'portable_json','gpu-oncall-bot',1795689947000);
INSERT INTO "operation_outputs" VALUES('toy-9gzp.host',1,'advance','{"ended":false,"step":"a","attempt":1,"status":"done"}',NULL,NULL,1795689947272,1795689947297,'portable_json','gpu-oncall-bot',1795689947000);
INSERT INTO "operation_outputs" VALUES('tr-38pr.host',2,'advance','{"ended":true,"status":"succeeded"}',NULL,NULL,1795689947287,1795689947307,'portable_json','gpu-oncall-bot',1795689947000);
INSERT INTO "operation_outputs" VALUES('tr-38pr',3,'DBOS.getResult','null',NULL,'tr-38pr.host',1795689947264,1795689947315,'portable_json','gpu-oncall-bot',1795689947000);
INSERT INTO "operation_outputs" VALUES('toy-9gzp.host',2,'advance','{"ended":false,"step":"b","attempt":1,"status":"done"}',NULL,NULL,1795689947298,1795689947316,'portable_json','gpu-oncall-bot',1795689947000);
INSERT INTO "operation_outputs" VALUES('toy-9gzp.host',3,'advance','{"ended":true,"status":"succeeded"}',NULL,NULL,1795689947319,1795689947324,'portable_json','gpu-oncall-bot',1795689947000);
INSERT INTO "operation_outputs" VALUES('toy-9gzp',3,'DBOS.getResult','null',NULL,'toy-9gzp.host',1795689947270,1795689947327,'portable_json','gpu-oncall-bot',1795689947000);
INSERT INTO "operation_outputs" VALUES('gt-tx48',1,'plan','"gate"',NULL,NULL,1795689951788,1795689951806,'portable_json','gpu-oncall-bot',1795689951000);
INSERT INTO "operation_outputs" VALUES('lk-6tgt',1,'plan','"go"',NULL,NULL,1795689951809,1795689951818,'portable_json','gpu-oncall-bot',1795689951000);
INSERT INTO "operation_outputs" VALUES('lk-6tgt',2,'gpu_oncall.host',NULL,NULL,'lk-6tgt.host',1795689951820,1795689951822,NULL,'gpu-oncall-bot',1795689951000);
INSERT INTO "operation_outputs" VALUES('lk-6tgt.host',1,'advance','{"ended":false,"step":"a","attempt":1,"status":"done"}',NULL,NULL,1795689951825,1795689951844,'portable_json','gpu-oncall-bot',1795689951000);
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
INSERT INTO "workflow_input" VALUES('tr-38pr','{"namedArgs":{},"positionalArgs":["tr-38pr"]}',1795689947000);
INSERT INTO "workflow_input" VALUES('toy-9gzp','{"namedArgs":{},"positionalArgs":["toy-9gzp"]}',1795689947000);
INSERT INTO "workflow_input" VALUES('tr-38pr.host','{"namedArgs":{},"positionalArgs":["tr-38pr"]}',1795689947000);
INSERT INTO "workflow_input" VALUES('toy-9gzp.host','{"namedArgs":{},"positionalArgs":["toy-9gzp"]}',1795689947000);
INSERT INTO "workflow_input" VALUES('gt-tx48','{"namedArgs":{},"positionalArgs":["gt-tx48"]}',1795689951000);
INSERT INTO "workflow_input" VALUES('lk-6tgt','{"namedArgs":{},"positionalArgs":["lk-6tgt"]}',1795689951000);
INSERT INTO "workflow_input" VALUES('lk-6tgt.host','{"namedArgs":{},"positionalArgs":["lk-6tgt"]}',1795689951000);
CREATE TABLE workflow_output (
    workflow_uuid TEXT NOT NULL PRIMARY KEY,
    output TEXT,
    error TEXT,
    retention_timestamp INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000)
);
INSERT INTO "workflow_output" VALUES('tr-38pr.host','null',NULL,1795689947000);
INSERT INTO "workflow_output" VALUES('tr-38pr','null',NULL,1795689947000);
INSERT INTO "workflow_output" VALUES('toy-9gzp.host','null',NULL,1795689947000);
INSERT INTO "workflow_output" VALUES('toy-9gzp','null',NULL,1795689947000);
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
INSERT INTO "workflow_status" VALUES('tr-38pr','SUCCESS','gpu_oncall.run',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689947000,1795689947000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,'portable_json',NULL,0,0,1795689947000,'null',NULL,NULL,0,'gpu-oncall-bot','62f3e614-8901-417c-a84d-6be67a3ab645');
INSERT INTO "workflow_status" VALUES('toy-9gzp','SUCCESS','gpu_oncall.run',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689947000,1795689947000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,'portable_json',NULL,0,0,1795689947000,'null',NULL,NULL,0,'gpu-oncall-bot','c9266e5c-1fcc-421c-aef7-432e83912374');
INSERT INTO "workflow_status" VALUES('tr-38pr.host','SUCCESS','gpu_oncall.host',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689947000,1795689947000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,'tr-38pr','portable_json',NULL,0,0,1795689947000,'null',NULL,NULL,0,'gpu-oncall-bot','a6e81c9a-20ee-452e-afea-a61aba679888');
INSERT INTO "workflow_status" VALUES('toy-9gzp.host','SUCCESS','gpu_oncall.host',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689947000,1795689947000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,'toy-9gzp','portable_json',NULL,0,0,1795689947000,'null',NULL,NULL,0,'gpu-oncall-bot','0d2ab875-3f7d-4c28-a2de-72a3477c20e7');
INSERT INTO "workflow_status" VALUES('gt-tx48','PENDING','gpu_oncall.run',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689951000,1795689951000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'17db33fc-c437-4ca7-a2a5-ef14f62bafa1',NULL,'portable_json',NULL,0,0,NULL,'null',NULL,NULL,0,'gpu-oncall-bot','17db33fc-c437-4ca7-a2a5-ef14f62bafa1');
INSERT INTO "workflow_status" VALUES('lk-6tgt','PENDING','gpu_oncall.run',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689951000,1795689951000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'89c12c20-9126-4bf4-a434-85b28e814339',NULL,'portable_json',NULL,0,0,NULL,'null',NULL,NULL,0,'gpu-oncall-bot','89c12c20-9126-4bf4-a434-85b28e814339');
INSERT INTO "workflow_status" VALUES('lk-6tgt.host','PENDING','gpu_oncall.host',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689951000,1795689951000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'a042ca1a-4962-42e2-8f5a-31dd60a5888f','lk-6tgt','portable_json',NULL,0,0,NULL,'null',NULL,NULL,0,'gpu-oncall-bot','a042ca1a-4962-42e2-8f5a-31dd60a5888f');
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
