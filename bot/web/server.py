"""The bot's web server: health and metrics for machines, signed artifact links for people.

`/health` answers 200 while Slack reaches the process, judged by what Slack sent, and 503 with the reason otherwise; what works
but not as it should (missing scopes, a second bot on the app token) is under `warnings`. `/metrics` is Prometheus text.
`/artifacts/run/step/name?until=...&sig=...` returns a stored file.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import IO, Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from bot.incidents.artifacts import ArtifactStore
from bot.store.records import RunStatus, UserError
from bot.store.store import Store

BLOCK_BYTES = 256 * 1024
SHOWN_INLINE = frozenset({"image/png", "text/plain", "application/json", "text/html"})


class SlackState(Protocol):
    """What the web server asks of the connection to Slack."""

    def silent_s(self) -> float | None:
        """Return the seconds since Slack's last sign of life, or None before the first."""

    def problem(self) -> str:
        """Return why Slack and the bot do not reach each other, or an empty string."""

    def warnings(self) -> list[str]:
        """Return what works, but not as it should."""


class _Runs(Collector):
    """Prometheus collector of the runs in the store."""

    def __init__(self, store: Store, slack_silent_s: Callable[[], float | None]) -> None:
        self._store = store
        self._slack_silent_s = slack_silent_s

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the current metrics."""
        active = GaugeMetricFamily("gpu_oncall_runs_active", "Runs that have not ended", labels=["status"])
        counts = dict.fromkeys((s.value for s in RunStatus if not s.final), 0)
        for row in self._store.active():
            counts[row.status] += 1
        for status, count in counts.items():
            active.add_metric([status], count)
        families = [active]
        silent_s = self._slack_silent_s()
        if silent_s is not None:
            text = "Since the last ping or pong of the Slack connection"
            families.append(GaugeMetricFamily("gpu_oncall_slack_silence_seconds", text, silent_s))
        return families


def web_app(
    *,
    store: Store,
    artifacts: ArtifactStore,
    slack: SlackState,
    warnings: Callable[[], list[str]] = list,
    receive_alerts: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None,
    collectors: Iterable[Collector] = (),
) -> web.Application:
    """Build the web application."""
    registry = CollectorRegistry()
    for collector in (_Runs(store, slack.silent_s), *collectors):
        registry.register(collector)

    async def health(_: web.Request) -> web.Response:
        silent_s, problem = slack.silent_s(), slack.problem()
        body = {
            "status": "slack_lost" if problem else "ok",
            "reason": problem,
            "warnings": [*slack.warnings(), *warnings()],
            "slack_silence_s": None if silent_s is None else round(silent_s, 1),
        }
        return web.json_response(body, status=503 if problem else 200)

    async def metrics(_: web.Request) -> web.Response:
        text = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def artifact(request: web.Request) -> web.StreamResponse:
        path, query = request.match_info["path"], request.query
        try:
            record, file = await asyncio.to_thread(
                artifacts.open, path, query.get("sig", ""), query.get("until", "")
            )
        except (UserError, ValueError) as error:
            return web.Response(status=404, text=str(error))
        media_type = record.artifact.media_type
        shown = "inline" if media_type in SHOWN_INLINE else "attachment"
        response = web.StreamResponse(
            headers={
                "Content-Type": media_type,
                "Content-Length": str(record.artifact.size_bytes),
                "Content-Disposition": f'{shown}; filename="{record.artifact.name}"',
                # A report is our own page, but made from a host's data: it may use styles and scripts, and load nothing.
                "Content-Security-Policy": "sandbox allow-scripts; default-src 'none'; img-src data:; "
                "style-src 'unsafe-inline'; script-src 'unsafe-inline'",
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
            }
        )
        await response.prepare(request)
        with contextlib.closing(file):
            async for block in _blocks(file):
                await response.write(block)
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/artifacts/{path:.+}", artifact)
    if receive_alerts is not None:
        app.router.add_post("/alerts", receive_alerts)
    return app


async def _blocks(file: IO[bytes]) -> AsyncIterator[bytes]:
    while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
        yield block
