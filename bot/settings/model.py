"""The settings as models, one per section. `bot.settings.load` reads them.

The environment variable of a field is `GPU_ONCALL_` plus its path joined by `__` (`GPU_ONCALL_SLACK__BOT_TOKEN`).
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bot.settings.watch import DrillSettings, MonitorSettings, PagingSettings
from gpu_actions.config.host import HostConfig
from gpu_actions.config.policies import LoadTestSettings
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Frozen
from gpu_actions.registry import ACTION_NAMES, actions

ENV_PREFIX = "GPU_ONCALL_"
Role = Literal["responder", "approver", "override"]


class SlackSettings(Frozen):
    """How to reach Slack, or the local workspace in its place."""

    mode: Literal["socket", "http"] = Field(default="socket", description="Socket Mode needs no inbound port")
    bot_token: SecretStr = Field(default=SecretStr(""), description="xoxb-...")
    app_token: SecretStr = Field(default=SecretStr(""), description="xapp-..., for Socket Mode")
    signing_secret: SecretStr = Field(default=SecretStr(""), description="for HTTP mode")
    api_url: str = Field(
        default="https://slack.com/api/", description="change it only for the local workspace"
    )
    incident_channel: str = Field(default="incidents", description="name or id of the channel for alerts")
    incident_place: Literal["thread", "channel"] = Field(
        default="thread", description="where an incident is worked on: its thread, or a channel made for it"
    )
    incident_invite: tuple[str, ...] = Field(
        default=("responder", "approver"),
        description="roles whose people are invited to the channel of an incident",
    )
    record_reaction: str = Field(
        default="memo",
        pattern=r"^[a-z0-9_+'-]*$",
        description="this reaction takes a person's message into the incident's record; empty: none does",
    )
    commands: dict[str, str] = Field(
        default_factory=dict, description="new names for commands that clash: {triage = 'gpu-triage'}"
    )
    edit_interval_s: float = Field(default=2.5, ge=0.2, le=60, description="between two edits of one message")
    edits_per_minute: int = Field(
        default=45, ge=1, le=1000, description="for the whole workspace (Slack: Tier 3)"
    )

    @field_validator("api_url")
    @classmethod
    def _ends_in_slash(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must be a URL, for example https://slack.com/api/")
        return value if value.endswith("/") else value + "/"

    @field_validator("commands")
    @classmethod
    def _usable_command_names(cls, value: dict[str, str]) -> dict[str, str]:
        """Check the new names; `handlers.check_command_names` checks that the renamed commands exist."""
        for other in value.values():
            if not other or any(c.isspace() or c == "/" for c in other) or len(other) > 32:
                raise ValueError(
                    f"{other!r} cannot be the name of a slash command: use up to 32 characters, no spaces, no slash"
                )
        return value

    def command(self, name: str) -> str:
        """Return the slash command that reaches `name`, with its slash."""
        return "/" + self.commands.get(name, name)


class ApprovalRule(Frozen):
    """Who must approve an action before it changes anything."""

    approvals: int = Field(default=1, ge=1, le=10)
    approvers: Role = "approver"
    expires_s: float = Field(default=1800, ge=5, le=86_400)
    remind_before_s: float = Field(default=300, ge=0)


class AccessSettings(Frozen):
    """Roles and what they may do.

    Members of a role are user ids (U...), user groups (S... or @oncall) and channels (C... or #name); whoever can join a
    channel gets its role, so name a private one.
    """

    roles: dict[Role, tuple[str, ...]] = Field(default_factory=dict)
    guests: tuple[str, ...] = Field(
        default=(), description="user ids of guests who may hold a role; all other guests may only read"
    )
    partner_teams: tuple[str, ...] = Field(
        default=(), description="ids (T...) of organisations whose people may hold a role (Slack Connect)"
    )
    change: Role = Field(
        default="responder", description="role that may change a host, load its service or profile it"
    )
    groups_ttl_s: float = Field(default=300, ge=0, description="how long user group members are remembered")
    approvals: dict[str, ApprovalRule] = Field(
        default_factory=lambda: {
            spec.name: ApprovalRule() for spec in actions().values() if spec.needs_approval
        }
    )

    @field_validator("approvals")
    @classmethod
    def _known_actions(cls, value: dict[str, ApprovalRule]) -> dict[str, ApprovalRule]:
        for action in value:
            if action not in ACTION_NAMES:
                raise ValueError(
                    f"approvals for {action!r}, which is not an action; known: {', '.join(ACTION_NAMES)}"
                )
        return value


class ArtifactSettings(Frozen):
    """Where the files of runs are kept. `url` is a folder or a URL; docs/runs.md lists the kinds."""

    url: str = Field(default="", description="empty: the folder `artifacts` in the state folder")
    endpoint: str = Field(
        default="", description="of an S3 server other than Amazon's, such as `http://minio:9000`"
    )
    retention_days: float = Field(default=30, gt=0)
    max_total_gib: float = Field(
        default=50,
        gt=0,
        description="above it the oldest files are removed, except those of an open incident",
    )
    max_mib: int = Field(
        default=512, ge=1, description="limit for one file; a larger one is listed, not stored"
    )


class RetentionSettings(Frozen):
    """How long the bot remembers what has ended. Nothing of an open incident is removed; files: `artifacts`."""

    days: float = Field(
        default=180, ge=1, description="runs, closed incidents and the beginning of the audit trail"
    )
    engine_days: float = Field(
        default=3, ge=1, description="the workflow engine's rows of ended runs, which only a restart needs"
    )


class WebSettings(Frozen):
    """The bot's web server: health, metrics, artifact links, webhook."""

    host: str = "127.0.0.1"
    port: int = Field(default=8801, ge=0, le=65535)
    base_url: str = Field(default="", description="the address for people; empty: http://host:port")
    link_days: float = Field(default=7, gt=0, description="how long an artifact link works")
    link_secret: SecretStr = Field(
        default=SecretStr(""), description="signs artifact links; empty: generated and kept"
    )
    alert_token: SecretStr = Field(
        default=SecretStr(""), description="bearer token of POST /alerts; empty: no alerts are accepted"
    )
    alert_max_bytes: int = Field(default=262_144, ge=1024, le=16_777_216, description="of one POST /alerts")
    alert_host_labels: tuple[str, ...] = Field(
        default=("host", "instance", "node", "Hostname"),
        min_length=1,
        description="labels of an alert that may name a host; the first that does counts",
    )


class McpSettings(Frozen):
    """`gpu-oncall mcp --http`: the address and the token of the Model Context Protocol server."""

    host: str = "127.0.0.1"
    port: int = Field(default=8802, ge=1, le=65535)
    token: SecretStr = Field(
        default=SecretStr(""), description="bearer token; empty: no HTTP server, only stdio"
    )


class PoolRule(Frozen):
    """How a pool of a fleet may change; a host's pool is its label `pool` (`fleet add HOST --label pool=NAME`)."""

    max_changing: int = Field(default=1, ge=1, le=1000, description="hosts that may change at once")
    least_serving: int = Field(
        default=0, ge=0, le=1000, description="hosts that must serve while another one changes"
    )


class FleetSettings(Frozen):
    """Many hosts and one bot over PostgreSQL (docs/fleet.md). `gpu-oncall fleet init|add` print what belongs here."""

    url: str = Field(
        default="",
        description="post box of the fleet, postgresql://...; empty: bot and worker share this host",
    )
    signing_key: Path | None = Field(
        default=None, description="of the bot: the file of the key that signs its orders"
    )
    bot_keys: tuple[str, ...] = Field(
        default=(), description="of a worker: public keys of the bot; two while a key is being replaced"
    )
    actions: tuple[str, ...] | None = Field(
        default=None, description="of a worker: actions that the bot may ask for here; left out: all"
    )
    pools: dict[str, PoolRule] = Field(
        default_factory=dict, description="of the bot: rules by pool; the empty name: hosts without a pool"
    )
    max_file_mib: int = Field(
        default=16,
        ge=0,
        le=32,
        description="of a worker: larger files stay on the host, unless artifacts.url is shared",
    )

    @field_validator("url")
    @classmethod
    def _is_postgresql(cls, value: str) -> str:
        if value and not value.startswith(("postgresql://", "postgresql+psycopg://")):
            raise ValueError("must start with postgresql://, or be empty")
        return value

    @field_validator("actions")
    @classmethod
    def _actions_exist(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for action in value or ():
            if action not in ACTION_NAMES:
                raise ValueError(f"{action!r} is not an action; known: {', '.join(ACTION_NAMES)}")
        return value

    @property
    def is_bot(self) -> bool:
        """Return True if this process is the bot of a fleet, which serves no model itself."""
        return bool(self.url) and self.signing_key is not None


class Settings(BaseSettings):
    """All settings. Build it with `load_settings`, which explains what is wrong."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        env_file_encoding="utf-8",
    )

    state_dir: Path = Field(
        default=Path("/var/lib/gpu-oncall"), description="database, locks, units, run folders"
    )
    runbook: Path | None = Field(
        default=None,
        description="the team's runbook, which `gpu-oncall runbook` writes and `doctor` compares",
    )
    database_url: str = Field(
        default="", description="empty: SQLite in the state folder; or postgresql://..."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False
    slack: SlackSettings = SlackSettings()
    access: AccessSettings = AccessSettings()
    artifacts: ArtifactSettings = ArtifactSettings()
    retention: RetentionSettings = RetentionSettings()
    web: WebSettings = WebSettings()
    mcp: McpSettings = McpSettings()
    monitors: MonitorSettings = MonitorSettings()
    paging: PagingSettings = PagingSettings()
    drills: DrillSettings = DrillSettings()
    triage: TriageThresholds = TriageThresholds()
    loadtest: LoadTestSettings = Field(
        default=LoadTestSettings(), description="profiles and caps of load tests, for all hosts"
    )
    fleet: FleetSettings = FleetSettings()
    hosts: tuple[HostConfig, ...] = Field(
        default=(), validate_default=False, description="at least one, but for the bot of a fleet"
    )

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
            raise ValueError("must start with sqlite:/// or postgresql://, or be empty")
        return value

    @model_validator(mode="after")
    def _hosts_fit_the_role(self) -> Self:
        if self.fleet.is_bot:
            if self.hosts:
                raise ValueError(
                    "the bot of a fleet has no [[hosts]] of its own: each is in its worker's settings"
                )
        elif not self.hosts:
            raise ValueError("hosts: is missing; a host needs a [[hosts]] section (see docs/settings.md)")
        elif self.fleet.url and (len(self.hosts) > 1 or not self.fleet.bot_keys):
            raise ValueError("the worker of a fleet needs fleet.bot_keys and exactly one [[hosts]] section")
        return self

    @model_validator(mode="after")
    def _host_names_are_unique(self) -> Self:
        names = [host.name for host in self.hosts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two hosts are named {name!r}")
        if self.drills.host and self.drills.host not in names:
            raise ValueError(f"drills.host: {self.drills.host!r} is not a host; known: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _hosts_inherit_the_load_test_settings(self) -> Self:
        hosts = tuple(
            host.model_copy(update={"loadtest": host.loadtest.over(self.loadtest)}) for host in self.hosts
        )
        object.__setattr__(self, "hosts", hosts)  # the model is frozen once it is built
        return self

    @property
    def default_host(self) -> HostConfig:
        return self.hosts[0]

    @property
    def own_database_url(self) -> str:
        """The SQLAlchemy URL of the bot's database."""
        return self.database_url or f"sqlite:///{self.state_dir / 'gpu-oncall.sqlite'}"

    def host_dir(self, name: str) -> Path:
        """Return the folder of a host: its units, router and run folders."""
        return self.state_dir / "hosts" / name

    def host(self, name: str) -> HostConfig | None:
        """Return a host by name, or None."""
        return next((host for host in self.hosts if host.name == name), None)

    @property
    def public_url(self) -> str:
        return (self.web.base_url or f"http://{self.web.host}:{self.web.port}").rstrip("/")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, dotenv_settings, init_settings
