"""The engine's own counters before and after a run, compared with what the client counted."""

from dataclasses import dataclass

from gpu_actions.loadtest.result import CrossCheck
from gpu_actions.loadtest.target import Target, fetch
from gpu_actions.serving.engines.metrics import parse_samples
from gpu_actions.serving.registry import engine_of_page, metric_names

TOKEN_NAMES = metric_names("generation_tokens")
REQUEST_NAMES = metric_names("requests_finished")
TOLERANCE = 0.01
"""One percent, and never less than one request: a scrape may fall between the updates of two counters."""


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Counters at one moment, None where the engine has no such metric. `problem` says why nothing could be read."""

    requests: float | None = None
    output_tokens: float | None = None
    kind: str | None = None
    problem: str | None = None


def sum_metric(page: str, names: tuple[str, ...]) -> float | None:
    """Add up a counter over its labels. Return None when no sample has one of the names."""
    values = [sample.value for sample in parse_samples(page, names) if sample.name in names]
    return sum(values) if values else None


async def read_counters(target: Target, metrics_url: str | None) -> EngineCounters:
    """Read the engine's counters. A page that cannot be read is a problem in the result, never an error."""
    url = metrics_url or f"{target.url}/metrics"
    try:
        status, body = await fetch(target, url, timeout_s=3)
        page = body.decode(errors="replace")
        requests, tokens = sum_metric(page, REQUEST_NAMES), sum_metric(page, TOKEN_NAMES)
    except (OSError, TimeoutError, ValueError) as error:
        return EngineCounters(problem=f"{url} cannot be read ({type(error).__name__}: {error})")
    if status != 200:
        return EngineCounters(problem=f"{url} answers HTTP {status}")
    if requests is None and tokens is None:
        return EngineCounters(problem=f"{url} has no counter that is known here ({', '.join(TOKEN_NAMES)})")
    engine = engine_of_page(page)
    return EngineCounters(requests, tokens, None if engine is None else engine.kind)


def cross_check(
    before: EngineCounters, after: EngineCounters, *, ok: int, tokens: int, unaccounted_tokens: int
) -> CrossCheck:
    """Compare the counts. `tokens` are those of full answers; failed ones may add `unaccounted_tokens` on the engine's side.

    An engine that also serves other traffic counts more; the summary then says so.
    """
    requests, made = _rise(before.requests, after.requests), _rise(before.output_tokens, after.output_tokens)

    def check(agrees: bool | None, summary: str, **figures: float | None) -> CrossCheck:
        return CrossCheck(
            agrees=agrees, client_requests_ok=ok, client_output_tokens=tokens, summary=summary, **figures
        )

    if problem := before.problem or after.problem:
        return check(None, f"not checked: {problem}")
    if min(made or 0, requests or 0) < 0:
        return check(False, "the engine's counters went backwards: it was restarted during the run")
    notes = []
    if made is not None:
        slack = max(TOLERANCE * tokens, tokens / ok if ok else 1)
        if made < tokens - slack:
            notes.append(f"the engine counted {made:,.0f} tokens, the client got {tokens:,}")
        elif made > tokens + unaccounted_tokens + slack:
            notes.append(
                f"the engine made {made:,.0f} tokens, {made - tokens:,.0f} more than this run got (other traffic?)"
            )
    if requests is not None and requests < ok - max(1, TOLERANCE * ok):
        notes.append(f"the engine counted {requests:,.0f} requests, the client got {ok:,}")
    summary = "; ".join(notes) or "the engine's counters agree"
    return check(not notes, summary, engine_requests=requests, engine_output_tokens=made)


def _rise(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
