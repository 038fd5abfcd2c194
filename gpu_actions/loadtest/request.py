"""What `/loadtest start` asks for, as a spec: the profile, the options on top of it, and the caps of the host.

A cap lowers what a profile says, and the plan says so. A typed option is refused instead.
"""

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from gpu_actions.action import PlanRefused
from gpu_actions.config.host import TierName
from gpu_actions.config.policies import LoadPolicy, LoadTestSettings
from gpu_actions.host import Host, Tier
from gpu_actions.loadtest.recent import RecentTraffic
from gpu_actions.loadtest.spec import LoadSpec, explain_invalid
from gpu_actions.models import Frozen


class LoadTestArguments(Frozen):
    """Options of `/loadtest start`. An option that is left out comes from the profile, else from the host's load policy."""

    workload: Literal["recent"] | None = Field(
        default=None, description="recent: rate and lengths of the host's last 10 minutes"
    )
    profile: str | None = Field(default=None, description="quick, fallback, tp, or one of the settings")
    qps: float | None = Field(default=None, gt=0, le=100_000, description="requests a second")
    duration: float | None = Field(
        default=None, gt=0, le=86_400, description="seconds; with find=knee: of the search"
    )
    max_new_tokens: str | None = Field(
        default=None,
        pattern=r"^\d{1,6}(-\d{1,6})?$",
        description="new tokens a request: 4, or a range: 16-64",
    )
    prompt_len_min: int | None = Field(default=None, ge=1, description="shortest prompt, in tokens")
    prompt_len_max: int | None = Field(default=None, ge=1, description="longest prompt, in tokens")
    slo_ttft_ms: float | None = Field(default=None, gt=0, description="limit of the TTFT p99")
    slo_e2e_ms: float | None = Field(default=None, gt=0, description="limit of the E2E p99")
    slo_itl_ms: float | None = Field(default=None, gt=0, description="limit of the p99 between two tokens")
    slo_e2e_per_token_ms: float | None = Field(
        default=None, gt=0, description="limit of the p99 of E2E per token, in place of slo_e2e_ms"
    )
    arrival: Literal["poisson", "constant", "burst", "ramp"] = Field(
        default="poisson", description="how requests arrive"
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=2**63 - 1,
        description="same seed, same load and same prompts; else new prompts each run",
    )
    target: Literal["router", "tp", "fallback"] = Field(
        default="router", description="router: as clients see it; a tier: past the router"
    )
    find: Literal["knee"] | None = Field(
        default=None, description="knee: search for the highest rate that holds the limits"
    )
    baseline: str | None = Field(
        default=None, description="run three times and record a baseline of this name"
    )

    @field_validator("max_new_tokens", mode="before")
    @classmethod
    def _a_number_is_a_range_of_one(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


def refuse_above_caps(arguments: LoadTestArguments, settings: LoadTestSettings, host: str) -> None:
    """Raise PlanRefused if a typed rate or duration is above the host's cap."""
    if problems := above_caps(settings, host, qps=arguments.qps, duration=arguments.duration):
        raise PlanRefused(problems)


def above_caps(
    settings: LoadTestSettings, host: str, *, qps: float | None, duration: float | None
) -> list[str]:
    """Return a sentence for each figure that is above the host's cap."""
    asked = (
        ("qps", qps, settings.qps_cap, "requests/s", "max_qps"),
        ("duration", duration, settings.duration_cap_s, "s", "max_duration_s"),
    )
    return [
        f"{name} = {value:g} is above the cap of {cap:g} {unit} for {host}; ask for {cap:g} or less, "
        f"or raise loadtest.{setting} in the settings"
        for name, value, cap, unit, setting in asked
        if value is not None and value > cap
    ]


def lower_to_caps(
    policy: LoadPolicy, settings: LoadTestSettings, host: str
) -> tuple[LoadPolicy, tuple[str, ...]]:
    """Return the policy with its rate and duration lowered to the host's caps, and a sentence for each that was lowered."""
    lowered: dict[str, float] = {}
    notes = []
    for field, cap, unit, setting in (
        ("target_qps", settings.qps_cap, "requests/s", "max_qps"),
        ("duration_s", settings.duration_cap_s, "s", "max_duration_s"),
    ):
        value = getattr(policy, field)
        if value > cap:
            lowered[field] = cap
            notes.append(f"lowered from {value:g} to {cap:g} {unit}, the cap of {host} (loadtest.{setting})")
    return policy.model_copy(update=lowered), tuple(notes)


def requested_spec(
    host: Host,
    tier_name: TierName,
    url: str,
    arguments: LoadTestArguments,
    recent: RecentTraffic | None = None,
) -> tuple[LoadSpec, tuple[str, ...]]:
    """Return the spec of a request, and what a person should know of it: its profile and what a cap lowered.

    `recent` replaces the rate and the lengths of the profile. Raises PlanRefused for an unknown profile and for options that
    contradict each other; `refuse_above_caps` is for the caller.
    """
    settings = host.config.loadtest
    try:
        policy = settings.profile(arguments.profile) if arguments.profile else host.config.load
    except ValueError as error:
        raise PlanRefused([str(error)]) from error
    if recent is not None:
        policy = recent.load(policy)
    typed = _typed(arguments)
    shape: dict[str, Any] = {name: typed[name] for name in ("target_qps", "duration_s") if name in typed}
    policy, notes = lower_to_caps(policy.model_copy(update=shape), settings, host.name)
    try:
        spec = spec_for_tier(
            policy,
            host.tiers[tier_name],
            url=url,
            name=f"load test of {host.name}",
            arrival=arguments.arrival,
            seed=arguments.seed or 0,
            nonce=None if arguments.seed is None else 0,
            **typed,
        )
    except ValidationError as error:
        raise PlanRefused(explain_invalid(error)) from error
    first = (f"profile {arguments.profile}",) if arguments.profile else ()
    traffic = () if recent is None else (recent.text, *recent.notes)
    return spec, (*first, *traffic, *notes)


def spec_for_tier(policy: LoadPolicy, tier: Tier, *, url: str, name: str, **overrides: Any) -> LoadSpec:
    """Return the spec of a load on a tier, or on the router in front of it. Raises pydantic.ValidationError."""
    about = {
        "url": url,
        "model": tier.engine.model,
        "name": name,
        "api_key": tier.config.engine.api_key,
        "metrics_url": f"{tier.engine.url}/metrics",
        "gpus": tier.config.gpus,
        "tensor_parallel": tier.config.ranks,
    }
    return LoadSpec.model_validate({**policy.model_dump(), **about, **overrides})


def _typed(arguments: LoadTestArguments) -> dict[str, Any]:
    """Return the fields of the spec that were typed."""
    names = {"qps": "target_qps", "duration": "duration_s"}
    given = {names.get(name, name): value for name, value in arguments if value is not None}
    typed = {name: value for name, value in given.items() if name in LoadPolicy.model_fields}
    if "max_new_tokens" in typed:
        typed |= {"min_new_tokens": None, "answer_lengths": ()}  # it replaces the whole range of the profile
    if {"prompt_len_min", "prompt_len_max"} & typed.keys():
        typed["prompt_lengths"] = ()
    return typed
