"""One synthetic completion through the tier's own URL: the only proof that it generates tokens.

It asks for a few tokens, streamed, with a deadline. The stream is read as strictly as by the engine drivers, so that an error
event, a cut stream and an empty answer are told apart.
"""

import asyncio
import time
from typing import Literal

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.serving.engines.completion import CompletionReader, completion_request
from gpu_actions.serving.http import Failure, HttpFailure, fetch, request
from gpu_actions.serving.interfaces import EngineError
from gpu_actions.snapshot.collector import Collector, CollectorSkipped, Source
from gpu_actions.system.redact import redacted_head

PROMPT = "gpu-oncall triage probe"

Outcome = Literal[
    "ok", "refused", "timeout", "http_error", "empty", "malformed", "cut", "error_event", "rejected"
]

FAILURES: dict[Failure, Outcome] = {
    "timeout": "timeout",
    "refused": "refused",
    "invalid_url": "rejected",
    "broken": "cut",
    "malformed": "malformed",
}


class CompletionReading(Frozen):
    """Outcome of one synthetic completion."""

    url: str
    outcome: Outcome
    status: int | None = None
    tokens: int = 0
    ttft_ms: float | None = None
    e2e_ms: float | None = None
    deadline_s: float = 0
    detail: str = ""
    model: str = ""
    replicas: tuple["CompletionReading", ...] = Field(
        default=(), description="of each replica that has an address of its own"
    )


async def collect_completion(source: Source) -> CompletionReading:
    """Ask for a few tokens, of each replica with an address of its own too. Raises CollectorSkipped without a URL. Never raises
    for what the engine answers."""
    url = source.engine_url if source.target.completion else None
    if url is None:
        raise CollectorSkipped("no engine is configured, or the completion is switched off")
    urls = dict.fromkeys((url, *source.target.replica_urls))
    found = dict(zip(urls, await asyncio.gather(*(ask(one, source) for one in urls)), strict=True))
    return of_tier(found[url], tuple(found[one] for one in source.target.replica_urls))


def of_tier(main: CompletionReading, replicas: tuple[CompletionReading, ...]) -> CompletionReading:
    """Return the completion of a tier: the one at its own address, unless that is missing because of some of its replicas.

    A router of the engine may have sent the request to a replica that hangs. If all of them answer, it is at fault itself.
    """
    answered = [one for one in replicas if one.outcome == "ok"]
    is_front = main.url not in {one.url for one in replicas}
    at_fault = is_front and (main.outcome == "refused" or len(answered) == len(replicas))
    if main.outcome == "ok" or not answered or at_fault:
        return main.model_copy(update={"replicas": replicas})
    return answered[0].model_copy(update={"replicas": replicas})


async def ask(url: str, source: Source) -> CompletionReading:
    """Ask one server for a few tokens."""
    model, secret = source.target.model, source.target.api_key
    api_key = None if secret is None else secret.get_secret_value()
    deadline_s, tokens = source.limits.completion_deadline_s, source.limits.completion_tokens
    base = url.rstrip("/")
    begun = time.monotonic()
    reader = CompletionReader(base, max_tokens=tokens, begun=begun)

    def reading(outcome: Outcome, *, detail: str = "", status: int | None = None) -> CompletionReading:
        return CompletionReading(
            url=base,
            outcome=outcome,
            status=status,
            tokens=reader.tokens if reader.tokens is not None else reader.chunks,
            ttft_ms=None if reader.first_at is None else (reader.first_at - begun) * 1000,
            e2e_ms=(time.monotonic() - begun) * 1000,
            deadline_s=deadline_s,
            detail=redacted_head(detail, 300),
            model=model or "",
        )

    status: int | None = None
    try:
        async with asyncio.timeout(deadline_s):
            if model is None:
                model = await first_model(base, api_key=api_key, timeout_s=deadline_s + 1)
            async with request(
                "POST",
                f"{base}/v1/completions",
                timeout_s=deadline_s + 1,  # the deadline of the whole comes first
                api_key=api_key,
                body=completion_request(model, PROMPT, max_tokens=tokens),
            ) as response:
                status = response.status
                if status != 200:
                    text = (await response.content.read(2000)).decode(errors="replace")
                    is_our_fault = 400 <= status < 500 and status not in (408, 429)
                    kind: Outcome = "rejected" if is_our_fault else "http_error"
                    return reading(kind, status=status, detail=f"answered {status}: {' '.join(text.split())}")
                async for line in response.content:
                    reader.feed(line.rstrip(b"\r\n"))
                    if reader.done:
                        break
    except TimeoutError:
        return reading("timeout", status=status, detail=f"not finished within {deadline_s:g} s")
    except EngineError as error:
        is_event = "error" in str(error) and "JSON" not in str(error)
        return reading("error_event" if is_event else "malformed", status=status, detail=str(error))
    except HttpFailure as failure:
        return reading(FAILURES[failure.reason], status=status, detail=str(failure))
    except (KeyError, TypeError, AttributeError) as error:  # a stream of another shape
        return reading("malformed", status=status, detail=f"{type(error).__name__}: {error}")
    try:
        reader.result()
    except EngineError as error:
        kind = "cut" if not reader.done else "empty" if not reader.text else "malformed"
        return reading(kind, status=200, detail=str(error))
    return reading("ok", status=200)


async def first_model(base: str, *, api_key: str | None, timeout_s: float) -> str:
    """Return the first model that the engine lists, or an empty name. Raises HttpFailure."""
    page = await fetch(f"{base}/v1/models", timeout_s=timeout_s, api_key=api_key)
    document = page.json() if page.status == 200 else None
    models = document.get("data") if isinstance(document, dict) else None
    if not isinstance(models, list) or not models or not isinstance(models[0], dict):
        return ""
    return str(models[0].get("id", ""))


COMPLETION = Collector(
    collect=collect_completion, deadline_s=lambda source: source.limits.completion_deadline_s + 1
)
