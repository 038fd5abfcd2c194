"""The whole bot in a test: the real app connected to a real local workspace, with toy actions under the product's names.

A test types and reads like a person; what the toy steps do on the host is counted in files.
"""

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bot.app import Bot, running
from bot.settings.model import AccessSettings, ApprovalRule, Settings, SlackSettings, WebSettings
from bot.store.records import RunRecord
from demo.workspace import Workspace, WorkspaceClient
from demo.workspace.client import ActResult, WorkspaceError
from demo.workspace.transcript import ButtonNotFound, ReadMessage
from demo.workspace.webapi import Middleware
from gpu_actions.action import ActionSpec, PlanRequest
from gpu_actions.plan import Plan
from gpu_actions.registry import actions
from tests.bot.toys import ToyArguments, effects_dir, hurry, plan, toy_settings
from tests.ports import free_port


def toy_product(scripts: Mapping[str, str] | None = None) -> dict[str, ActionSpec]:
    """Return a toy for each action of the product; `scripts` has the default script of an action."""

    def toy(name: str, spec: ActionSpec) -> ActionSpec:
        default = (scripts or {}).get(name, "count:a")

        class Arguments(ToyArguments):
            script: str = default
            deep: bool = False
            window: float | None = None
            reason: str = ""
            baseline: str = ""

        async def planned(request: PlanRequest) -> Plan:
            return (await plan(request)).model_copy(update={"action": name, "title": f"toy {name}"})

        return dataclasses.replace(
            spec, summary=f"a toy {name}", arguments=Arguments, plan=planned, plan_start=None, give_back=None
        )

    return {name: toy(name, spec) for name, spec in actions().items()}


@dataclass
class Desk:
    """A running bot, its workspace and its users."""

    bot: Bot
    workspace: Workspace
    people: WorkspaceClient
    state_dir: Path

    async def say(
        self, text: str, *, user: str = "oncall", thread: str | None = None, channel: str = "incidents"
    ) -> ActResult:
        """Post a message or a command, which must be acknowledged."""
        result = await self.people.say(user, channel, text, thread)
        assert result.ok, f"{text!r} was not acknowledged: {result}"
        return result

    async def press(self, button: str, *, user: str = "oncall", run: str | None = None) -> ActResult:
        """Press a button as soon as it appears."""
        deadline = time.monotonic() + 10
        while True:
            try:
                result = await self.people.press(user, button, run=run)
                break
            except (
                ButtonNotFound,
                WorkspaceError,
            ):  # not there yet, or edited between the search and the press
                assert time.monotonic() < deadline, f"no button {button}: {await self.texts()}"
                await asyncio.sleep(0.02)
        assert result.ok, f"{button} was not acknowledged: {result}"
        return result

    async def messages(self, channel: str = "incidents") -> list[ReadMessage]:
        """Return every message and reply of the channel, private ones included."""
        found: list[ReadMessage] = []
        for message in await self.people.read(channel):
            found += [message, *message.replies]
        return found

    async def texts(self) -> list[str]:
        return [message.text for message in await self.messages()]

    async def hears(self, text: str, *, timeout_s: float = 10, channel: str = "incidents") -> ReadMessage:
        """Wait for a message that contains a text."""
        deadline = time.monotonic() + timeout_s
        while True:
            messages = await self.messages(channel)
            for message in messages:
                if text in message.text or text in message.fallback:
                    return message
            assert time.monotonic() < deadline, f"nobody said {text!r}: {[m.text for m in messages]}"
            await asyncio.sleep(0.02)

    async def answer(self, text: str, *, user: str = "oncall") -> str:
        """Post something and return the private answer that only this person sees."""
        before = len(await self._private(user))
        await self.say(text, user=user)
        deadline = time.monotonic() + 10
        while len(found := await self._private(user)) <= before:
            assert time.monotonic() < deadline, f"{text!r} was not answered: {await self.texts()}"
            await asyncio.sleep(0.02)
        return found[-1].text

    async def _private(self, user: str) -> list[ReadMessage]:
        return [message for message in await self.messages() if message.visible_to == user]

    async def run(
        self, action: str, *, until: Callable[[RunRecord], bool] = lambda run: run.status.final
    ) -> RunRecord:
        """Wait until `until` is true of the newest run of an action, and return it."""
        deadline = time.monotonic() + 15
        while True:
            run = self.bot.runs.latest(action=action)
            if run is not None and until(run):
                return run
            assert time.monotonic() < deadline, f"{action}: {run}"
            await asyncio.sleep(0.02)

    async def message_of(self, run_id: str) -> list[ReadMessage]:
        """Return the live messages of a run."""
        return [
            message
            for message in await self.messages()
            if (message.metadata or {}).get("event_type") == "gpu_oncall_run"
            and (message.metadata or {}).get("event_payload", {}).get("run_id") == run_id
        ]

    def release(self) -> None:
        """Let waiting toy steps continue."""
        folder = effects_dir(self.state_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "release").touch()


def desk_settings(
    folder: Path,
    workspace: Workspace,
    *,
    slack_changes: Mapping[str, object] | None = None,
    **changes: object,
) -> Settings:
    """Return settings for this workspace: one toy host, roles by user groups, monitors off."""
    base = toy_settings(folder)
    values = {
        **{name: getattr(base, name) for name in ("artifacts", "hosts")},
        "state_dir": folder,
        "slack": SlackSettings.model_validate(
            {
                "bot_token": workspace.bot_token,
                "app_token": workspace.app_token,
                "api_url": f"{workspace.url}/api/",
                "edit_interval_s": 0.2,
                "edits_per_minute": 1000,
                **(slack_changes or {}),
            }
        ),
        "access": AccessSettings(
            roles={
                "responder": ("@oncall-engineers",),
                "approver": ("@incident-leads",),
                "override": ("@incident-leads",),
            },
            approvals={"restore": ApprovalRule(expires_s=600)},
        ),
        "web": WebSettings(port=free_port()),
        "monitors": {"enabled": False},
        **changes,
    }
    return Settings(_env_file=None, **values)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def desk(
    folder: Path,
    *,
    scripts: Mapping[str, str] | None = None,
    middlewares: Sequence[Middleware] = (),
    **changes: object,
) -> AsyncIterator[Desk]:
    """Run a workspace and a bot connected to it."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        os.environ.pop(name, None)  # slack_sdk sends even loopback requests through a proxy
    hurry()
    async with (
        Workspace(port=0, api_middlewares=middlewares) as workspace,
        sitting_down(folder, workspace, scripts=scripts, **changes) as it,
    ):
        yield it


@contextlib.asynccontextmanager
async def sitting_down(
    folder: Path,
    workspace: Workspace,
    *,
    scripts: Mapping[str, str] | None = None,
    specs: Mapping[str, ActionSpec] | None = None,
    **changes: object,
) -> AsyncIterator[Desk]:
    """Run a bot in an existing workspace, on the state folder `folder`."""
    settings = desk_settings(folder, workspace, **changes)  # type: ignore[arg-type]
    async with (
        running(settings, specs=specs or toy_product(scripts)) as bot,
        WorkspaceClient(workspace.url) as people,
    ):
        yield Desk(bot, workspace, people, folder)
