"""The settings of an engine: where it is reached and what it is asked for."""

from pydantic import Field, SecretStr, field_validator

from gpu_actions.models import Frozen
from gpu_actions.system.urls import check_url


class EngineSettings(Frozen):
    """How to reach the server of one tier. The settings allow the kinds of `serving/registry.py` (`EngineConfig`)."""

    kind: str
    url: str = Field(description="base URL of the engine itself, not of the router")
    replicas: tuple[str, ...] = Field(
        default=(),
        max_length=32,
        description="base URLs of its data-parallel replicas, if each is a server with a port of its own; `url` is then one of "
        "them, or the router of the engine in front of them",
    )
    model: str = Field(description="model name that requests must ask for")
    api_key: SecretStr | None = None
    ready_timeout_s: float = Field(default=1200, gt=0, description="from launch to the first generated token")
    warmup_requests: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="completions that prime a tier before it gets traffic, 16 at once",
    )
    request_timeout_s: float = Field(default=30, gt=0)

    _url = field_validator("url")(check_url)

    @field_validator("replicas")
    @classmethod
    def _replica_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        urls = tuple(check_url(url) for url in value)
        if len(urls) == 1 or len(set(urls)) < len(urls):
            raise ValueError("name at least two replicas, each once")
        return urls
