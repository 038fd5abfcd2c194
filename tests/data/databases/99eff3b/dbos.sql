BEGIN TRANSACTION;
CREATE TABLE application_versions (
    version_id TEXT NOT NULL PRIMARY KEY,
    version_name TEXT NOT NULL UNIQUE,
    version_timestamp INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000),
    created_at INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000)
, "application_name" TEXT DEFAULT NULL);
INSERT INTO "application_versions" VALUES('3ee08a9b-3a9f-4ac9-ba3c-05f9057c23fe','1',1795689928000,1795689928000,'gpu-oncall-bot');
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
INSERT INTO "operation_outputs" VALUES('tr-rz95',1,'plan','"go"',NULL,NULL,1795689928965,1795689928974,'portable_json','gpu-oncall-bot',1795689928000);
INSERT INTO "operation_outputs" VALUES('toy-2s3k',1,'plan','"go"',NULL,NULL,1795689928973,1795689928979,'portable_json','gpu-oncall-bot',1795689928000);
INSERT INTO "operation_outputs" VALUES('tr-rz95',2,'gpu_oncall.host',NULL,NULL,'tr-rz95.host',1795689928979,1795689928982,NULL,'gpu-oncall-bot',1795689928000);
INSERT INTO "operation_outputs" VALUES('toy-2s3k',2,'gpu_oncall.host',NULL,NULL,'toy-2s3k.host',1795689928981,1795689928984,NULL,'gpu-oncall-bot',1795689928000);
INSERT INTO "operation_outputs" VALUES('tr-rz95.host',1,'advance','{"ended":false,"step":"look","attempt":1,"status":"done"}',NULL,NULL,1795689928985,1795689929000,'portable_json','gpu-oncall-bot',1795689929000);
INSERT INTO "operation_outputs" VALUES('toy-2s3k.host',1,'advance','{"ended":false,"step":"a","attempt":1,"status":"done"}',NULL,NULL,1795689928987,1795689929010,'portable_json','gpu-oncall-bot',1795689929000);
INSERT INTO "operation_outputs" VALUES('tr-rz95.host',2,'advance','{"ended":true,"status":"succeeded"}',NULL,NULL,1795689929002,1795689929018,'portable_json','gpu-oncall-bot',1795689929000);
INSERT INTO "operation_outputs" VALUES('tr-rz95',3,'DBOS.getResult','null',NULL,'tr-rz95.host',1795689928984,1795689929027,'portable_json','gpu-oncall-bot',1795689929000);
INSERT INTO "operation_outputs" VALUES('toy-2s3k.host',2,'advance','{"ended":false,"step":"b","attempt":1,"status":"done"}',NULL,NULL,1795689929012,1795689929032,'portable_json','gpu-oncall-bot',1795689929000);
INSERT INTO "operation_outputs" VALUES('toy-2s3k.host',3,'advance','{"ended":true,"status":"succeeded"}',NULL,NULL,1795689929033,1795689929037,'portable_json','gpu-oncall-bot',1795689929000);
INSERT INTO "operation_outputs" VALUES('toy-2s3k',3,'DBOS.getResult','null',NULL,'toy-2s3k.host',1795689928986,1795689929040,'portable_json','gpu-oncall-bot',1795689929000);
INSERT INTO "operation_outputs" VALUES('gt-hpdn',1,'plan','"gate"',NULL,NULL,1795689933476,1795689933491,'portable_json','gpu-oncall-bot',1795689933000);
INSERT INTO "operation_outputs" VALUES('lk-dnn4',1,'plan','"go"',NULL,NULL,1795689933490,1795689933502,'portable_json','gpu-oncall-bot',1795689933000);
INSERT INTO "operation_outputs" VALUES('lk-dnn4',2,'gpu_oncall.host',NULL,NULL,'lk-dnn4.host',1795689933507,1795689933509,NULL,'gpu-oncall-bot',1795689933000);
INSERT INTO "operation_outputs" VALUES('lk-dnn4.host',1,'advance','{"ended":false,"step":"a","attempt":1,"status":"done"}',NULL,NULL,1795689933511,1795689933527,'portable_json','gpu-oncall-bot',1795689933000);
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
INSERT INTO "workflow_input" VALUES('tr-rz95','{"namedArgs":{},"positionalArgs":["tr-rz95"]}',1795689928000);
INSERT INTO "workflow_input" VALUES('toy-2s3k','{"namedArgs":{},"positionalArgs":["toy-2s3k"]}',1795689928000);
INSERT INTO "workflow_input" VALUES('tr-rz95.host','{"namedArgs":{},"positionalArgs":["tr-rz95"]}',1795689928000);
INSERT INTO "workflow_input" VALUES('toy-2s3k.host','{"namedArgs":{},"positionalArgs":["toy-2s3k"]}',1795689928000);
INSERT INTO "workflow_input" VALUES('gt-hpdn','{"namedArgs":{},"positionalArgs":["gt-hpdn"]}',1795689933000);
INSERT INTO "workflow_input" VALUES('lk-dnn4','{"namedArgs":{},"positionalArgs":["lk-dnn4"]}',1795689933000);
INSERT INTO "workflow_input" VALUES('lk-dnn4.host','{"namedArgs":{},"positionalArgs":["lk-dnn4"]}',1795689933000);
CREATE TABLE workflow_output (
    workflow_uuid TEXT NOT NULL PRIMARY KEY,
    output TEXT,
    error TEXT,
    retention_timestamp INTEGER NOT NULL DEFAULT (strftime('%s','now') * 1000)
);
INSERT INTO "workflow_output" VALUES('tr-rz95.host','null',NULL,1795689929000);
INSERT INTO "workflow_output" VALUES('tr-rz95','null',NULL,1795689929000);
INSERT INTO "workflow_output" VALUES('toy-2s3k.host','null',NULL,1795689929000);
INSERT INTO "workflow_output" VALUES('toy-2s3k','null',NULL,1795689929000);
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
INSERT INTO "workflow_status" VALUES('tr-rz95','SUCCESS','gpu_oncall.run',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689928000,1795689929000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,'portable_json',NULL,0,0,1795689929000,'null',NULL,NULL,0,'gpu-oncall-bot','60866000-4b4a-49d5-9410-d126810193a9');
INSERT INTO "workflow_status" VALUES('toy-2s3k','SUCCESS','gpu_oncall.run',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689928000,1795689929000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,'portable_json',NULL,0,0,1795689929000,'null',NULL,NULL,0,'gpu-oncall-bot','4b65948d-f07d-4a66-98f2-be8365f0a44b');
INSERT INTO "workflow_status" VALUES('tr-rz95.host','SUCCESS','gpu_oncall.host',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689928000,1795689929000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,'tr-rz95','portable_json',NULL,0,0,1795689929000,'null',NULL,NULL,0,'gpu-oncall-bot','1a064d48-99d6-499d-a612-b52b0c68eaff');
INSERT INTO "workflow_status" VALUES('toy-2s3k.host','SUCCESS','gpu_oncall.host',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689928000,1795689929000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,'toy-2s3k','portable_json',NULL,0,0,1795689929000,'null',NULL,NULL,0,'gpu-oncall-bot','d6b3af85-779f-4210-9482-050a1efe8962');
INSERT INTO "workflow_status" VALUES('gt-hpdn','PENDING','gpu_oncall.run',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689933000,1795689933000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'4327816a-fca0-4d77-92fc-772c2d1f500c',NULL,'portable_json',NULL,0,0,NULL,'null',NULL,NULL,0,'gpu-oncall-bot','4327816a-fca0-4d77-92fc-772c2d1f500c');
INSERT INTO "workflow_status" VALUES('lk-dnn4','PENDING','gpu_oncall.run',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689933000,1795689933000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'aa77bc37-73e9-4d6d-9783-ecf1759f97d4',NULL,'portable_json',NULL,0,0,NULL,'null',NULL,NULL,0,'gpu-oncall-bot','aa77bc37-73e9-4d6d-9783-ecf1759f97d4');
INSERT INTO "workflow_status" VALUES('lk-dnn4.host','PENDING','gpu_oncall.host',NULL,NULL,NULL,NULL,NULL,NULL,'bot',1795689933000,1795689933000,'1','',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'3c3090c1-3503-40d7-8ff1-9a6a98df1651','lk-dnn4','portable_json',NULL,0,0,NULL,'null',NULL,NULL,0,'gpu-oncall-bot','3c3090c1-3503-40d7-8ff1-9a6a98df1651');
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
