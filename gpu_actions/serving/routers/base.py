"""What every kind of router shares: the base of its settings, and what it needs to know of a host."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol, Self

from pydantic import Field, field_validator, model_validator

from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import Router
from gpu_actions.serving.setup_checks import SetupCheck
from gpu_actions.system.urls import check_url


class BackPressure(Frozen):
    """Limits of the single-GPU tier. The defaults are the runbook's: batch 16, queue 5 s, long contexts every 4 s."""

    max_concurrent: int = Field(default=16, ge=1, le=256, description="requests on the tier at once")
    long_share: int = Field(default=4, ge=0, description="of these, kept for long contexts")
    queue_timeout_s: float = Field(default=5, gt=0, le=600)
    max_queue: int = Field(default=32, ge=1, le=10_000, description="waiting requests; more are answered 429")
    long_body_bytes: int = Field(
        default=8192, ge=256, description="a request body from this size is a long context"
    )
    long_window_s: float = Field(
        default=4, ge=0, le=60, description="long contexts start together at these steps"
    )
    retry_after_s: int = Field(default=5, ge=1, le=600)

    @model_validator(mode="after")
    def _share_fits(self) -> Self:
        if self.long_share >= self.max_concurrent:
            raise ValueError(
                f"long_share ({self.long_share}) must be less than max_concurrent ({self.max_concurrent})"
            )
        return self


class HoldPolicy(Frozen):
    """How new requests wait while a fallback from a tier that serves nothing is planned and started."""

    wait_s: float = Field(
        default=20,
        ge=0,
        le=300,
        description="a request waits at most this long, and a hold ends by itself after it; 0: requests are never held",
    )
    max_requests: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="more are answered 429; not set: as many as the fallback takes at once (max_concurrent + max_queue)",
    )

    def limit(self, pressure: BackPressure) -> int:
        """Return how many requests may wait."""
        return self.max_requests or pressure.max_concurrent - pressure.long_share + pressure.max_queue


class RouterConfig(Frozen):
    """The settings of what sends requests to the tiers.

    A kind of router is a subclass with `kind` set to its name, and a line in `serving/registry.py`.
    """

    kind: str = ""
    managed: bool = Field(
        default=True,
        description="true: the bot configures and starts its own instance; false: it drives an existing one",
    )
    url: str = Field(default="http://127.0.0.1:8000", description="where clients send their requests")
    backend: str = "serve"
    back_pressure: BackPressure = BackPressure()
    hold: HoldPolicy = HoldPolicy()

    _url = field_validator("url")(check_url)

    show_servers: ClassVar[str] = ""
    """How an operator reads the servers' counters, for messages."""

    show_sessions: ClassVar[str] = ""
    """How an operator reads the open sessions, for messages."""

    @abstractmethod
    def describe_drain(self, server: str) -> str:
        """Return what a drain of a server line sends to the router, for plans."""

    @classmethod
    @abstractmethod
    def reader(cls, address: str, *, backend: str) -> Router:
        """Return a driver for reading an existing router that is controlled at `address`."""

    @abstractmethod
    def build(self, host: "RoutedHost", *, state_dir: Path) -> Router:
        """Return the driver of the router in front of a host's tiers. Starts nothing."""

    @abstractmethod
    async def setup_checks(self, name: str) -> list[SetupCheck]:
        """Check for `doctor` what a managed router needs on this machine."""


class RoutedEngine(Protocol):
    """The address of a tier's engine."""

    @property
    def url(self) -> str: ...


class RoutedTier(Protocol):
    """A tier as a router sees it: its server line, its full weight, its address."""

    @property
    def server(self) -> str: ...
    @property
    def weight(self) -> int: ...
    @property
    def engine(self) -> RoutedEngine: ...


class RoutedHost(Protocol):
    """A host as a router sees it; `HostConfig` is one."""

    @property
    def name(self) -> str: ...
    @property
    def router(self) -> RouterConfig: ...
    @property
    def every_tier(self) -> Mapping[str, RoutedTier]: ...
