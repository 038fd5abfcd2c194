"""The settings of what the bot does by itself: monitors, drills by schedule, and pages."""

from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from bot.settings.cron import cron_trigger
from gpu_actions.models import Frozen
from gpu_actions.triage.rule import CAUSES


class MonitorSettings(Frozen):
    """What the bot monitors by itself, how often, and how an alert is confirmed. A period of zero turns a monitor off."""

    enabled: bool = True
    topology_period_s: float = Field(default=30, ge=0, description="GPUs, links, fabric manager (NVML)")
    kernel_log_period_s: float = Field(default=5, ge=0, description="Xid and SXid messages")
    hang_period_s: float = Field(default=5, ge=0, description="token counter, ranks, NCCL RAS, router")
    probe_period_s: float = Field(default=30, ge=0, description="a synthetic completion")
    regression_period_s: float = Field(default=60, ge=0, description="TTFT and tokens/s against the baseline")
    mirror_period_s: float = Field(
        default=0,
        ge=0,
        description="a low-rate load like the recent traffic, against its baseline; 900 is useful",
    )
    standby_period_s: float = Field(
        default=60, ge=0, description="the standby of the fallback, where tiers.fallback.standby is set"
    )
    page_cache_period_s: float = Field(
        default=300, ge=0, description="weights in the page cache, where page_cache of a tier is set"
    )
    standby_test_hour: int | None = Field(
        default=4,
        ge=0,
        le=23,
        description="local hour in which a sleeping standby is woken once as a test; None: never",
    )
    confirm_n: int = Field(default=2, ge=1, le=100, description="readings that must agree (N of M)")
    confirm_m: int = Field(default=3, ge=1, le=100, description="latest readings that count (M)")
    clear_after: int = Field(default=3, ge=1, le=100, description="good readings in a row that end an alert")
    hold_s: float = Field(default=120, gt=0, description="how long the last state is kept without a reading")
    burst_s: float = Field(default=300, ge=0, description="what follows an alert within this time joins it")
    quiet_s: float = Field(
        default=900, ge=0, description="no alert for this time after a cause was acknowledged"
    )
    auto_fallback: tuple[str, ...] = Field(
        default=(), description="causes that start a fallback without a person"
    )
    auto_fallback_pause_s: float = Field(
        default=21_600, ge=0, description="no automatic fallback within this time after any other"
    )
    auto_fallback_after_restore_s: float = Field(
        default=3600, ge=0, description="no automatic fallback within this time after the end of a restore"
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
                raise ValueError(f"{cause!r} is not a cause; known: {', '.join(CAUSES)}")
        return value


class DrillSettings(Frozen):
    """Drills by schedule. When a drill may run and how long it may take: `hosts.drill`."""

    cron: str = Field(
        default="", description="five fields in UTC, such as `0 10 * * 2`; empty: only `/drill start`"
    )
    host: str = Field(default="", description="empty: the default host")
    clock_speed: float = Field(
        default=1, ge=1, description="how much faster the cron's clock runs; for demonstrations and tests"
    )

    @field_validator("cron")
    @classmethod
    def _readable(cls, value: str) -> str:
        if value:
            cron_trigger(value)
        return value


class PagingSettings(Frozen):
    """Whom to page when an alert that says fall back cannot be told in Slack. Off without an address or a PagerDuty key."""

    kind: Literal["pagerduty", "webhook"] = Field(
        default="webhook", description="PagerDuty's Events API v2, or a JSON object to any address"
    )
    url: str = Field(default="", description="address of the webhook; empty for PagerDuty's own")
    key: SecretStr = Field(
        default=SecretStr(""), description="PagerDuty's routing key, or the webhook's bearer token"
    )
    when: Literal["slack_away", "always"] = Field(
        default="slack_away", description="always: also when Slack has the alert"
    )
    after_s: float = Field(default=60, ge=0, description="how long Slack may take before the page goes out")

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must be a URL, for example https://pager.example.com/gpu-oncall")
        return value
