"""The bot's tables, in SQLAlchemy Core types that SQLite and PostgreSQL share.

The rows are the source of truth about a run: the workflow engine only resumes a killed run from them. Models are stored as
JSON; nothing is pickled.
"""

import sqlalchemy as sa

SCHEMA_VERSION = "0004"
"""The newest migration in `bot.store.migrations`."""

metadata = sa.MetaData()

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("host", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("changes_host", sa.Boolean, nullable=False),
    sa.Column("requester", sa.JSON, nullable=False),
    sa.Column("place", sa.JSON, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("plan", sa.JSON(none_as_null=True)),
    sa.Column("plan_hash", sa.String(64), nullable=False, default=""),
    sa.Column("problems", sa.JSON, nullable=False),
    sa.Column("message_ts", sa.String(32)),
    sa.Column("incident_id", sa.String(32)),
    sa.Column("dedupe_key", sa.String(255), nullable=False, unique=True),
    sa.Column("workflow_id", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("gate_expires_at", sa.Double),
    sa.Column("reminded_at", sa.Double),  # no longer used; reminders are thread notes
    sa.Column("stop_requested", sa.JSON(none_as_null=True)),
    sa.Column("outcome", sa.Text, nullable=False, default=""),
    sa.Column("next_action", sa.Text, nullable=False, default=""),
    sa.Column("version", sa.BigInteger, nullable=False, index=True),
    sa.Index("runs_by_action_and_host", "action", "host", "created_at"),
    sa.Index("runs_by_status", "status"),
    sa.Index("runs_by_incident", "incident_id"),
)

steps = sa.Table(
    "run_steps",
    metadata,
    sa.Column("run_id", sa.String(32), sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("step_id", sa.String(128), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("summary", sa.Text, nullable=False, default=""),
    sa.Column("next_action", sa.Text, nullable=False, default=""),
    sa.Column("progress", sa.Double),
    sa.Column("started_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("executions", sa.Integer, nullable=False, default=0),
    sa.Column("compensating", sa.Boolean, nullable=False, default=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("findings", sa.JSON, nullable=False),
    sa.Column("verdict", sa.JSON(none_as_null=True)),
)

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(32), sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("user", sa.JSON, nullable=False),
    sa.Column("decision", sa.String(16), nullable=False),
    sa.Column("plan_hash", sa.String(64), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.UniqueConstraint("run_id", "user_id", "plan_hash", name="one_word_a_person_and_plan"),
)

signals = sa.Table(
    "signals",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(32), sa.ForeignKey("runs.id"), nullable=False, index=True),
    sa.Column("signal", sa.String(16), nullable=False),
    sa.Column("by", sa.JSON, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

host_locks = (
    sa.Table(  # one change of a host at a time: held from the start to the end of a run that changes it
        "host_locks",
        metadata,
        sa.Column("host", sa.String(64), primary_key=True),
        sa.Column("run_id", sa.String(32), sa.ForeignKey("runs.id"), nullable=False),
    )
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(32), sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("step_id", sa.String(128), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("artifact", sa.JSON, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("slack_file_id", sa.String(32)),
    sa.Column("stored_at", sa.Double, nullable=False),
    sa.Column("swept_at", sa.Double),
    sa.UniqueConstraint("run_id", "step_id", "name", name="one_file_a_name"),
)

incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("host", sa.String(64), nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("cause", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("channel", sa.String(64), nullable=False),
    sa.Column("thread_ts", sa.String(32)),
    sa.Column("opened_by", sa.JSON, nullable=False),
    sa.Column("opened_at", sa.Double, nullable=False),
    sa.Column("closed_at", sa.Double),
)
sa.Index(
    "one_open_incident_a_host",
    incidents.c.host,
    unique=True,
    sqlite_where=incidents.c.status == "open",
    postgresql_where=incidents.c.status == "open",
)

timeline = sa.Table(
    "timeline",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("incident_id", sa.String(32), index=True),
    sa.Column("run_id", sa.String(32), index=True),
    sa.Column("host", sa.String(64), nullable=False),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, server_default=""),
)

audit_chain = (
    sa.Table(  # one row: the hash of the newest entry, and that of the newest entry that retention removed
        "audit_chain",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("anchor", sa.String(64), nullable=False),
        sa.Column("anchor_id", sa.Integer, nullable=False),
    )
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
)

monitor_states = sa.Table(
    "monitor_states",
    metadata,
    sa.Column("host", sa.String(64), primary_key=True),
    sa.Column("look", sa.String(32), primary_key=True),
    sa.Column("state", sa.JSON, nullable=False),
)

untold_alarms = sa.Table(  # alerts that are not yet delivered
    "untold_alarms",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("alarm", sa.JSON, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

alert_groups = sa.Table(  # Alertmanager's alerts of one cause on one host, and the message that counts them
    "alert_groups",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("host", sa.String(64), nullable=False),
    sa.Column("cause", sa.String(64), nullable=False),
    sa.Column("channel", sa.String(64)),
    sa.Column("ts", sa.String(32)),
    sa.Column("is_root", sa.Boolean, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("shown", sa.Integer, nullable=False),  # the total that the message shows; -1: it must be edited
    sa.Column("firing", sa.JSON, nullable=False),
    sa.Column("alert", sa.JSON, nullable=False),
    sa.Column("first_at", sa.Double, nullable=False),
    sa.Column("last_at", sa.Double, nullable=False),
    sa.Column("closed_at", sa.Double),
)
sa.Index(
    "one_open_group_a_cause",
    alert_groups.c.host,
    alert_groups.c.cause,
    unique=True,
    sqlite_where=alert_groups.c.closed_at.is_(None),
    postgresql_where=alert_groups.c.closed_at.is_(None),
)

pages = sa.Table(  # pages to the on-call, from before they are sent
    "pages",
    metadata,
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("host", sa.String(64), nullable=False),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("page", sa.JSON, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("due_at", sa.Double, nullable=False),
    sa.Column("sent_at", sa.Double),
    sa.Column("close_asked_at", sa.Double),
    sa.Column("closed_at", sa.Double),
)

counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
