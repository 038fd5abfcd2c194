"""`gpu-oncall mcp`: what the bot knows, for assistants and scripts, over the Model Context Protocol (stdio or HTTP).

Every tool reads; `propose_plan` posts a plan in the incident channel and starts nothing: a person presses its button, with
that person's own rights and the approvals of the settings. What is returned carries no secret.
"""

import asyncio
import functools
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from slack_sdk.web.async_client import AsyncWebClient

from bot.incidents.artifacts import ArtifactStore
from bot.incidents.incidents import Incidents
from bot.incidents.report.collect import read_facts
from bot.incidents.report.render import markdown
from bot.presenter.plan_message import proposal
from bot.presenter.render_context import RenderContext
from bot.runs.runs import Runs
from bot.settings.model import Settings
from bot.slack.channels import Channels
from bot.slack.posts import post
from bot.store.records import Person, Place, RunRecord, UserError
from bot.store.store import Store
from gpu_actions.action import ActionSpec
from gpu_actions.models import JsonObject
from gpu_actions.registry import actions
from gpu_actions.system.redact import redact

INSTRUCTIONS = (
    "Read-only access to a bot that guards multi-GPU LLM serving hosts. Nothing here changes a host: propose_plan only asks "
    "people in the incident channel. Evidence that is missing is 'unknown', never healthy."
)
VERDICT_MAX_AGE_S = 30 * 86_400.0
MAX_ROWS = 100
MAX_SNAPSHOT_BYTES = 400_000
SNAPSHOT = "snapshot.json"
ASSISTANT = Person(id="mcp", name="an assistant (MCP)")


@dataclass(frozen=True)
class Reader:
    """The tools. Each returns JSON or Markdown as text. A wrong argument raises UserError: the client sees an error."""

    settings: Settings
    store: Store
    runs: Runs
    artifacts: ArtifactStore

    async def hosts(self) -> str:
        """List the hosts: their tiers, the last verdict and its age in seconds, active runs, and the open incident."""
        return _json([await asyncio.to_thread(self._host, host.name) for host in self.settings.hosts])

    def _host(self, name: str) -> JsonObject:
        host = self.runs.hosts.get(name)
        found = self.store.last_verdict(name, max_age_s=VERDICT_MAX_AGE_S)
        incident = Incidents(self.store).active(name)
        brief = {"verdict", "cause", "summary"}
        return {
            "host": name,
            "tiers": {tier: {"model": one.config.engine.model} for tier, one in host.tiers.items()},
            "verdict": None if found is None else found[0].model_dump(mode="json", include=brief),
            "verdict_age_s": None if found is None else round(found[1], 1),
            "active_runs": [run.id for run in self.store.list(host=name, active_only=True)],
            "open_incident": None if incident is None else incident.id,
        }

    async def verdict(self, host: str) -> str:
        """Return the last verdict of triage on a host with all its findings, and its age in seconds."""
        name = self.runs.hosts.name(host)
        found = await asyncio.to_thread(self.store.last_verdict, name, max_age_s=VERDICT_MAX_AGE_S)
        if found is None:
            raise UserError(f"no triage of {name} within the last 30 days: its state is unknown")
        return _json({"age_s": round(found[1], 1), **found[0].model_dump(mode="json")})

    async def list_runs(self, host: str = "", action: str = "", limit: int = 20) -> str:
        """List runs, newest first: id, action, host, status, requester, times (Unix seconds), outcome."""
        found = await asyncio.to_thread(
            self.store.list, host=host or None, action=action or None, limit=max(1, min(limit, MAX_ROWS))
        )
        return _json([_brief(run) for run in found])

    async def run(self, run_id: str) -> str:
        """Return one run with its steps, decisions and artifacts."""
        run = await self._run(run_id)
        return _json(run.model_dump(mode="json", exclude={"plan", "place", "message_ts"}))

    async def snapshot(self, run_id: str) -> str:
        """Return the snapshot that a triage took: everything it read from the host, as JSON."""
        run = await self._run(run_id)
        for record in run.artifacts:
            if record.artifact.name == SNAPSHOT:
                raw = await asyncio.to_thread(self.artifacts.read, record)
                if len(raw) > MAX_SNAPSHOT_BYTES:
                    raise UserError(
                        f"the snapshot has {len(raw)} bytes, over {MAX_SNAPSHOT_BYTES}; use its artifact link"
                    )
                if raw:
                    return redact(raw.decode(errors="replace")).text
        raise UserError(f"{run_id} has no stored snapshot")

    async def list_artifacts(self, run_id: str) -> str:
        """List the stored files of a run with size, SHA-256 and a link that expires."""
        run = await self._run(run_id)
        files = await asyncio.to_thread(self.artifacts.fresh_links, run)
        return _json(
            [
                {"title": one.artifact.title or one.artifact.name, "step": one.step_id, "link": link}
                | one.artifact.model_dump(
                    mode="json", include={"name", "size_bytes", "sha256", "media_type", "source"}
                )
                for one, link in files
            ]
        )

    async def list_incidents(self, host: str = "", limit: int = 20) -> str:
        """List incidents, newest first."""
        found = await asyncio.to_thread(
            Incidents(self.store).newest, host=host or None, limit=max(1, min(limit, MAX_ROWS))
        )
        return _json([one.model_dump(mode="json", exclude={"place"}) for one in found])

    async def incident_report(self, incident_id: str) -> str:
        """Return the report of an incident as Markdown: impact, timeline, verdicts, deviations, follow-ups."""
        return markdown(await asyncio.to_thread(read_facts, self.store, incident_id))

    async def list_load_tests(self, host: str = "", limit: int = 20) -> str:
        """List finished load tests with their verdict and figures, newest first."""
        found = await asyncio.to_thread(
            self.store.list, host=host or None, action="loadtest", limit=max(1, min(limit, MAX_ROWS))
        )
        return _json(
            [
                _brief(run)
                | {"figures": [step.data["thread_text"] for step in run.steps if "thread_text" in step.data]}
                for run in found
                if run.status.final
            ]
        )

    async def propose_plan(
        self, action: str, host: str, reason: str, options: dict[str, str] | None = None
    ) -> str:
        """Make a plan and post it in the incident channel for people to start. Nothing starts by itself.

        `action` is one of fallback, restore, triage, loadtest, trace, forensics, drill; `reason` is shown to the people;
        `options` are the action's own, for example {"duration": "20"}.
        """
        if not reason.strip():
            raise UserError("reason is empty: say in one sentence why people should start this")
        name = self.runs.hosts.name(host)
        plan = await self.runs.plan(action=action, host=name, options=options or {}, requester=ASSISTANT)
        slack = self.settings.slack
        client = AsyncWebClient(token=slack.bot_token.get_secret_value(), base_url=slack.api_url, timeout=15)
        incident = await asyncio.to_thread(Incidents(self.store).active, name)
        channel = await Channels(client).id_of(slack.incident_channel)
        place = Place(channel=channel) if incident is None else incident.place
        commands = {command: slack.command(command) for command in slack.commands}
        context = RenderContext(now=self.store.clock(), commands=commands)
        await post(client, proposal(plan, options or {}, reason, context), place)
        return f"The plan {plan.hash} is posted in {slack.incident_channel}; nothing has started. People decide there."

    async def _run(self, run_id: str) -> RunRecord:
        run = await asyncio.to_thread(self.store.get, run_id)
        if run is None:
            raise UserError(f"there is no run {run_id!r}")
        return run


TOOLS = (
    Reader.hosts, Reader.verdict, Reader.snapshot, Reader.list_runs, Reader.run, Reader.list_artifacts,
    Reader.list_incidents, Reader.incident_report, Reader.list_load_tests, Reader.propose_plan,
)  # fmt: skip


def _explained(tool: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
    """Have the client see what was wrong with a request; of any other exception it sees only that there was one."""

    @functools.wraps(tool)
    async def explained(*args: Any, **kwargs: Any) -> str:
        try:
            return await tool(*args, **kwargs)
        except UserError as error:
            raise ToolError(str(error)) from None

    return explained


def build_server(
    settings: Settings, specs: Mapping[str, ActionSpec] | None = None
) -> tuple[MCPServer[Any], Store]:
    """Build the server over the bot's database, with all actions or only `specs`. The caller closes the store."""
    store = Store(settings.own_database_url)
    store.create()
    artifacts = ArtifactStore(settings, store)
    runs = Runs(
        settings, store=store, artifacts=artifacts, actions=actions() if specs is None else specs, role="bot"
    )
    reader = Reader(settings, store, runs, artifacts)
    server: MCPServer[Any] = MCPServer("gpu-oncall", instructions=INSTRUCTIONS, log_level="WARNING")
    for tool in TOOLS:
        server.add_tool(
            _explained(getattr(reader, tool.__name__)), name=tool.__name__, structured_output=False
        )
    return server, store


def serve(settings: Settings, *, http: bool) -> int:
    """Serve on stdio, or with `http` on `mcp.host` and `mcp.port`. Return the exit code."""
    server, store = build_server(settings)
    try:
        if not http:
            asyncio.run(server.run_stdio_async())
            return 0
        import uvicorn

        app = http_app(server, settings)
        uvicorn.run(
            app, host=settings.mcp.host, port=settings.mcp.port, log_level="warning", access_log=False
        )
    finally:
        store.close()
    return 0


Asgi = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[Any]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]


def http_app(server: MCPServer[Any], settings: Settings) -> Asgi:
    """Return the ASGI application: the MCP endpoint at /mcp, for requests with the bearer token only."""
    app: Asgi = server.streamable_http_app(stateless_http=True, json_response=True, host=settings.mcp.host)
    expected = f"Bearer {settings.mcp.token.get_secret_value()}".encode()

    async def guarded(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, expected):
                await _refuse(send)
                return
        await app(scope, receive, send)

    return guarded


async def _refuse(send: Callable[[MutableMapping[str, Any]], Awaitable[None]]) -> None:
    body = b'{"error": "the bearer token is missing or wrong (mcp.token)"}'
    headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _brief(run: RunRecord) -> JsonObject:
    fields = {
        "id",
        "action",
        "host",
        "status",
        "created_at",
        "started_at",
        "ended_at",
        "outcome",
        "next_action",
        "incident_id",
    }
    return {
        **run.model_dump(mode="json", include=fields),
        "requester": run.requester.name or run.requester.id,
    }


def _json(data: Sequence[Any] | JsonObject) -> str:
    return redact(json.dumps(data, indent=1)).text
