"""The settings: a TOML file, then `.env`, then environment variables over it; validated before anything starts.

Environment names are `GPU_ONCALL_` plus the field path joined by `__` (`GPU_ONCALL_SLACK__BOT_TOKEN`). A wrong value is
answered with the field, the value, where it came from and what is allowed; secrets are never printed.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gpu_actions.config.host import HostConfig
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Frozen
from gpu_actions.registry import ACTION_NAMES, actions
from gpu_actions.serving.registry import KIND_NAMES
from gpu_actions.triage.rule import CAUSES

ENV_PREFIX = "GPU_ONCALL_"
CONFIG_VARIABLE = "GPU_ONCALL_CONFIG"
SEARCH_PATH = (Path("gpu-oncall.toml"), Path("/etc/gpu-oncall/gpu-oncall.toml"))

Role = Literal["responder", "approver", "override"]


class SettingsError(Exception):
    """The settings cannot be used. `problems` holds one line a wrong field."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class SlackSettings(Frozen):
    """How to reach Slack, or the local workspace that stands in for it."""

    mode: Literal["socket", "http"] = Field(default="socket", description="Socket Mode needs no inbound port")
    bot_token: SecretStr = Field(default=SecretStr(""), description="xoxb-...")
    app_token: SecretStr = Field(default=SecretStr(""), description="xapp-..., for Socket Mode")
    signing_secret: SecretStr = Field(default=SecretStr(""), description="for HTTP mode")
    api_url: str = Field(
        default="https://slack.com/api/", description="another one only for the local workspace"
    )
    incident_channel: str = Field(default="incidents", description="name or id of the channel for alerts")
    commands: dict[str, str] = Field(
        default_factory=dict, description="other names for commands that clash: {triage = 'gpu-triage'}"
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
    """Who must agree before an action changes anything."""

    approvals: int = Field(default=1, ge=1, le=10)
    approvers: Role = "approver"
    expires_s: float = Field(default=1800, ge=5, le=86_400)
    remind_before_s: float = Field(default=300, ge=0)


class AccessSettings(Frozen):
    """Roles and what they may do. Members are user ids (U...), user group ids (S...) or group handles (@oncall)."""

    roles: dict[Role, tuple[str, ...]] = Field(default_factory=dict)
    change: Role = Field(default="responder", description="role that may start actions that change a host")
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
                    f"approvals for {action!r}, which is no action; known: {', '.join(ACTION_NAMES)}"
                )
        return value


class ArtifactSettings(Frozen):
    """Where files of runs are kept. `url` is a folder or anything fsspec opens (`s3://bucket/prefix`)."""

    url: str = Field(default="", description="empty: the folder `artifacts` in the state folder")
    retention_days: float = Field(default=30, gt=0)
    max_mib: int = Field(
        default=512, ge=1, description="one file's limit; a larger one is listed, not stored"
    )


class WebSettings(Frozen):
    """The bot's own web: health, metrics, artifact links, webhook."""

    host: str = "127.0.0.1"
    port: int = Field(default=8801, ge=0, le=65535)
    base_url: str = Field(default="", description="how people reach it; empty: http://host:port")
    link_secret: SecretStr = Field(
        default=SecretStr(""), description="signs artifact links; empty: made and kept"
    )
    alert_token: SecretStr = Field(
        default=SecretStr(""), description="bearer token of POST /alerts; empty: it is off"
    )
    alert_max_bytes: int = Field(default=262_144, ge=1024, le=16_777_216, description="of one POST /alerts")
    alert_host_labels: tuple[str, ...] = Field(
        default=("host", "instance", "node", "Hostname"),
        min_length=1,
        description="labels of an alert that name a host, the first that does counts",
    )


class MonitorSettings(Frozen):
    """What is looked at by itself, how often, and how sure it must be. A period of zero turns one look off."""

    enabled: bool = True
    topology_period_s: float = Field(default=30, ge=0, description="GPUs, links, fabric manager (NVML)")
    kernel_log_period_s: float = Field(default=5, ge=0, description="Xid and SXid messages")
    hang_period_s: float = Field(default=5, ge=0, description="token counter, ranks, NCCL RAS, router")
    probe_period_s: float = Field(default=30, ge=0, description="a synthetic completion")
    regression_period_s: float = Field(default=60, ge=0, description="TTFT and tokens/s against the baseline")
    confirm_n: int = Field(default=2, ge=1, le=100, description="looks that must agree (N of M)")
    confirm_m: int = Field(default=3, ge=1, le=100, description="last looks that count (M)")
    clear_after: int = Field(default=3, ge=1, le=100, description="good looks in a row that end an alert")
    hold_s: float = Field(default=120, gt=0, description="the last state is held this long without a look")
    burst_s: float = Field(default=300, ge=0, description="what comes within this of an alert joins it")
    quiet_s: float = Field(default=900, ge=0, description="after an acknowledged cause")
    auto_fallback: tuple[str, ...] = Field(
        default=(), description="causes that may start a fallback by themselves"
    )
    auto_fallback_pause_s: float = Field(
        default=21_600, ge=0, description="no second fallback by itself within this time of any other"
    )
    auto_fallback_after_restore_s: float = Field(
        default=3600, ge=0, description="none by itself within this time of a restore's end"
    )

    @model_validator(mode="after")
    def _n_of_m(self) -> Self:
        if self.confirm_n > self.confirm_m:
            raise ValueError(f"confirm_n ({self.confirm_n}) must not be above confirm_m ({self.confirm_m})")
        return self

    @field_validator("auto_fallback")
    @classmethod
    def _known_causes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for cause in value:
            if cause not in CAUSES or cause in ("none", "unknown"):
                raise ValueError(f"{cause!r} is no cause; known: {', '.join(CAUSES)}")
        return value


class Settings(BaseSettings):
    """Everything the bot is told. Build it with `load_settings`, which explains what is wrong."""

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
    database_url: str = Field(
        default="", description="empty: SQLite in the state folder; or postgresql://..."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False
    slack: SlackSettings = SlackSettings()
    access: AccessSettings = AccessSettings()
    artifacts: ArtifactSettings = ArtifactSettings()
    web: WebSettings = WebSettings()
    monitors: MonitorSettings = MonitorSettings()
    triage: TriageThresholds = TriageThresholds()
    hosts: tuple[HostConfig, ...] = Field(min_length=1)

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
            raise ValueError("must start with sqlite:/// or postgresql://, or be empty")
        return value

    @model_validator(mode="after")
    def _hosts_have_names_of_their_own(self) -> "Settings":
        names = [host.name for host in self.hosts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two hosts are named {name!r}")
        return self

    @property
    def default_host(self) -> HostConfig:
        return self.hosts[0]

    @property
    def own_database_url(self) -> str:
        """The SQLAlchemy URL of the bot's own tables."""
        return self.database_url or f"sqlite:///{self.state_dir / 'gpu-oncall.sqlite'}"

    def host_dir(self, name: str) -> Path:
        """The folder of one host's units, router and run folders."""
        return self.state_dir / "hosts" / name

    def host(self, name: str) -> HostConfig | None:
        """The host of that name, or None."""
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


def find_config(explicit: Path | None = None) -> Path | None:
    """The settings file: the one asked for, `GPU_ONCALL_CONFIG`, or the first of `SEARCH_PATH` that is there."""
    if explicit is not None:
        return explicit
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    return next((path for path in SEARCH_PATH if path.is_file()), None)


def load_settings(config: Path | None = None, *, env_file: Path | None = Path(".env")) -> Settings:
    """Read and validate the settings. Raises SettingsError with one line a problem."""
    path = find_config(config)
    from_file: dict[str, Any] = {}
    if path is not None:
        try:
            from_file = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(
                [f"{path}: cannot be read ({error.strerror}); name another file with --config"]
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError([f"{path}: is not TOML: {error}"]) from None
    try:
        return Settings(_env_file=env_file, **from_file)
    except ValidationError as error:
        raise SettingsError(
            [_explain(details, path, from_file, env_file) for details in error.errors()]
        ) from None


_SECRET_WORDS = ("token", "secret", "password", "api_key")


def _explain(
    details: ErrorDetails, path: Path | None, from_file: Mapping[str, Any], env_file: Path | None
) -> str:
    location = [part for part in details["loc"] if part not in KIND_NAMES]
    field = ".".join(str(part) for part in location) or "settings"
    reason = details["msg"].removeprefix("Value error, ")
    if details["type"] == "missing":
        return f"{field}: is missing; {_where_to_set(field, path)}"
    if details["type"] == "extra_forbidden":
        return f"{field}: is no setting of ours (in {_source_of(location, path, from_file, env_file)}); check the spelling"
    secret = any(word in field.lower() for word in _SECRET_WORDS)
    value = "(secret)" if secret else _short(details["input"])
    return f"{field} = {value}: {reason} (from {_source_of(location, path, from_file, env_file)})"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "{...}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _where_to_set(field: str, path: Path | None) -> str:
    file = str(path) if path is not None else "gpu-oncall.toml (see docs/settings.md for an example)"
    return f"set it in {file} or as {ENV_PREFIX}{field.upper().replace('.', '__')}"


def _source_of(
    location: list[int | str], path: Path | None, from_file: Mapping[str, Any], env_file: Path | None
) -> str:
    names = [
        "__".join(str(part) for part in location[:length]).upper() for length in range(len(location), 0, -1)
    ]
    set_in_environment = {name.upper(): name for name in os.environ}
    for name in names:
        if ENV_PREFIX + name in set_in_environment:
            return f"the environment variable {set_in_environment[ENV_PREFIX + name]}"
    if env_file is not None and env_file.is_file():
        keys = {
            line.split("=", 1)[0].strip().upper()
            for line in env_file.read_text(encoding="utf-8").splitlines()
        }
        for name in names:
            if ENV_PREFIX + name in keys:
                return f"{ENV_PREFIX + name} in {env_file}"
    cursor: Any = from_file
    for part in location:
        if isinstance(cursor, Mapping) and part in cursor:
            cursor = cursor[part]
        elif isinstance(cursor, list) and isinstance(part, int) and part < len(cursor):
            cursor = cursor[part]
        else:
            break
    return str(path) if path is not None and location and location[0] in from_file else "the defaults"
