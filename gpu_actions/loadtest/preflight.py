"""Checks before the load: does the service serve this model, and how does it count a prompt.

One real completion is the proof of service, and its usage shows whether the tokenizer counts bytes. A wrong request (model,
key, TLS) is the caller's to fix and raises LoadTestRefused; a service that is down is a finding and raises ServiceDown.
"""

import asyncio
import ssl
from array import array
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from pydantic_core import from_json

from gpu_actions.loadtest.generator import Generator
from gpu_actions.loadtest.outcomes import Outcome
from gpu_actions.loadtest.prompts import PromptMaker
from gpu_actions.loadtest.result import EngineFacts
from gpu_actions.loadtest.schedule import Schedule
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import LoadTestRefused, ServiceDown, ServiceRefuses, Target, fetch
from gpu_actions.system.redact import redacted_head

PROBE_BYTES = 64
PROBE_TOKENS = 2
PROBE_TIMEOUT_S = 30.0
REFUSED_FOR_S = 30.0
AGAIN_S = 0.3
REFUSALS = (Outcome.HTTP_429, Outcome.HTTP_503)
"""A full router refuses some requests, at worst after its queue's timeout, and serves others. Only a service that refuses
every request for `REFUSED_FOR_S` is not tested."""

MAX_SPECIAL_TOKENS = 2
"""A tokenizer may add a begin and an end token."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What the service answered. `probe_tokens` and `unit` come from one completion."""

    engine: EngineFacts
    unit: Literal["bytes", "words"]
    probe_tokens: int
    warnings: tuple[str, ...]


async def preflight(spec: LoadSpec, target: Target) -> Preflight:
    """Check the service. Raises LoadTestRefused or ServiceDown."""
    warnings: list[str] = []
    models, limit, version = await _models(spec, target, warnings)
    if models and spec.model not in models:
        raise LoadTestRefused(
            f"model = {spec.model!r}: is not served at {spec.url}; use one of {', '.join(map(repr, models[:5]))}"
        )
    longest = spec.prompt_len_max + spec.max_new_tokens
    if limit is not None and longest > limit:
        raise LoadTestRefused(
            f"prompt_len_max = {spec.prompt_len_max}: with max_new_tokens = {spec.max_new_tokens} is over the {limit} tokens "
            f"that this engine takes; lower one of them"
        )
    prompt_tokens, made = await _probe(spec, target)
    unit: Literal["bytes", "words"] = "words"
    if spec.prompt_unit != "auto":
        unit = spec.prompt_unit
    elif abs(prompt_tokens - PROBE_BYTES) <= MAX_SPECIAL_TOKENS:
        unit = "bytes"
    engine = EngineFacts(url=spec.url, models=tuple(models), max_model_len=limit, version=version)
    return Preflight(engine=engine, unit=unit, probe_tokens=made, warnings=tuple(warnings))


async def _models(
    spec: LoadSpec, target: Target, warnings: list[str]
) -> tuple[list[str], int | None, str | None]:
    """Return the models that the service lists, the context limit of the tested one, and the engine's version."""
    try:
        status, body = await fetch(target, f"{spec.url}/v1/models")
    except ssl.SSLCertVerificationError as error:
        raise LoadTestRefused(
            f"url = {spec.url}: its certificate is not trusted ({error.verify_message}); name its authority with --tls-ca"
        ) from error
    except ssl.SSLError as error:
        raise LoadTestRefused(
            f"url = {spec.url}: TLS failed ({error.reason}); is it an http:// address?"
        ) from error
    except ConnectionRefusedError as error:
        raise ServiceDown(f"nothing listens at {spec.url} (connection refused)") from error
    except (OSError, ValueError) as error:
        raise ServiceDown(f"{spec.url} does not answer ({type(error).__name__}: {error})") from error
    if status in {401, 403}:
        raise LoadTestRefused(
            f"url = {spec.url}: answers HTTP {status}; set its key in GPU_ONCALL_LOADTEST_API_KEY"
        )
    problem = f"answers HTTP {status}"
    if status == 200:
        try:
            entries = from_json(body)["data"]
            models = [str(entry["id"]) for entry in entries]
            limit = next((entry.get("max_model_len") for entry in entries if entry["id"] == spec.model), None)
            return models, int(limit) if isinstance(limit, int) else None, await _version(spec, target)
        except (ValueError, KeyError, TypeError, AttributeError):
            problem = "does not list models"
    warnings.append(f"{spec.url}/v1/models {problem}: the model's name could not be checked beforehand")
    return [], None, None


async def _version(spec: LoadSpec, target: Target) -> str | None:
    try:
        status, body = await fetch(target, f"{spec.url}/version", timeout_s=2)
        document = from_json(body) if status == 200 else None
    except (OSError, ValueError):
        return None  # most servers have no such page
    return str(document["version"]) if isinstance(document, dict) and "version" in document else None


async def _probe(spec: LoadSpec, target: Target) -> tuple[int, int]:
    """Ask for a completion of 2 tokens. Return the prompt tokens and the new tokens that the engine counted."""
    give_up_at = monotonic() + REFUSED_FOR_S
    while True:
        generator = await _ask_once(spec, target)
        outcome = Outcome(generator.records.outcome[0])
        if outcome not in REFUSALS or monotonic() >= give_up_at:
            break
        await asyncio.sleep(AGAIN_S)
    if outcome is Outcome.OK:
        return generator.records.prompt_tokens[0], generator.records.tokens[0]
    detail = redacted_head(next(iter(generator.counters.first_error.values()), (0.0, ""))[1], 200)
    if outcome is Outcome.TLS_ERROR:
        raise LoadTestRefused(f"url = {spec.url}: TLS failed ({detail})")
    if outcome is Outcome.HTTP_4XX:
        raise LoadTestRefused(f"{spec.url} refuses the request: {detail}; check model, key and lengths")
    down = ServiceRefuses if outcome in REFUSALS else ServiceDown
    raise down(f"{spec.url} returns no completion: {outcome.label} ({detail or 'no detail'})")


async def _ask_once(spec: LoadSpec, target: Target) -> Generator:
    """Send one small request and return the generator that holds its record."""
    tokens = min(PROBE_TOKENS, spec.max_new_tokens)
    schedule = Schedule(array("d", [0.0]), array("i", [PROBE_BYTES]), array("i", [tokens]), warmup=0)
    timeout_s = min(PROBE_TIMEOUT_S, spec.timeout_s)
    # The probe's prompt is another one than row 0 of the load, which would find it in a prefix cache.
    probe_spec = spec.model_copy(update={"timeout_s": timeout_s, "seed": spec.seed ^ 1})
    generator = Generator(probe_spec, schedule, range(1), target, PromptMaker(probe_spec, "bytes"))
    await generator.run(monotonic(), asyncio.Event(), drain_s=timeout_s + 1)
    return generator
