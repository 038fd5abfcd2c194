"""The engine's own counters before and after a run, against what the client counted."""

from dataclasses import dataclass

from gpu_actions.loadtest.result import CrossCheck
from gpu_actions.loadtest.target import Target, fetch
from gpu_actions.serving.registry import engine_of_page, metric_names

TOKEN_NAMES = metric_names("generation_tokens")
REQUEST_NAMES = metric_names("requests_finished")
TOLERANCE = 0.01
"""One percent, and never less than one request: a scrape may fall between a counter's two updates."""


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Counters at one moment, None where the engine has no such metric; `problem` says why nothing could be read."""

    requests: float | None = None
    output_tokens: float | None = None
    kind: str | None = None
    problem: str | None = None


def sum_metric(page: str, names: tuple[str, ...]) -> float | None:
    """Add up a counter over its labels. Gives None when no line has one of the names."""
    total: float | None = None
    for line in page.splitlines():
        name = line.split("{", 1)[0].split(" ", 1)[0]
        if name in names:
            try:
                value = float(line.rsplit("}", 1)[-1].split()[0] if "}" in line else line.split()[1])
            except (ValueError, IndexError):
                continue  # not a sample; other lines of the name may be
            total = value if total is None else total + value
    return total


async def read_counters(target: Target, metrics_url: str | None) -> EngineCounters:
    """Scrape the engine's page. Never raises for a page that is not there: the result says so."""
    url = metrics_url or f"{target.url}/metrics"
    try:
        status, body = await fetch(target, url, timeout_s=3)
    except (OSError, TimeoutError, ValueError) as error:
        return EngineCounters(problem=f"{url} cannot be read ({type(error).__name__}: {error})")
    if status != 200:
        return EngineCounters(problem=f"{url} answers HTTP {status}")
    page = body.decode(errors="replace")
    requests, tokens = sum_metric(page, REQUEST_NAMES), sum_metric(page, TOKEN_NAMES)
    if requests is None and tokens is None:
        return EngineCounters(problem=f"{url} has no counter that is known here ({', '.join(TOKEN_NAMES)})")
    engine = engine_of_page(page)
    return EngineCounters(
        requests=requests, output_tokens=tokens, kind=None if engine is None else engine.kind
    )


def cross_check(
    before: EngineCounters, after: EngineCounters, *, ok: int, tokens: int, unaccounted_tokens: int
) -> CrossCheck:
    """Compare. `tokens` are those of full answers; failed ones may add up to `unaccounted_tokens` more on the engine's side.

    The engine may show more (other traffic goes through it): agreement then fails, and the summary says which way.
    """
    problem = before.problem or after.problem
    if problem is not None:
        return CrossCheck(
            agrees=None, client_requests_ok=ok, client_output_tokens=tokens, summary=f"not checked: {problem}"
        )
    requests = None if before.requests is None or after.requests is None else after.requests - before.requests
    made = (
        None
        if before.output_tokens is None or after.output_tokens is None
        else after.output_tokens - before.output_tokens
    )
    if (made is not None and made < 0) or (requests is not None and requests < 0):
        return CrossCheck(
            agrees=False,
            client_requests_ok=ok,
            client_output_tokens=tokens,
            summary="the engine's counters went backwards: it was restarted during the run",
        )
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
    return CrossCheck(
        agrees=not notes,
        client_requests_ok=ok,
        client_output_tokens=tokens,
        engine_requests=requests,
        engine_output_tokens=made,
        summary="; ".join(notes) or "the engine's counters agree",
    )
