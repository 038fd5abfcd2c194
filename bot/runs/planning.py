"""From a request in words to a plan: the host, the typed options, the action's own planning, and the gate of the settings."""

import datetime
import difflib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pydantic import ValidationError

from bot.settings.model import Settings
from bot.store.records import Person, UserError
from gpu_actions.action import ActionSpec, PlanRequest
from gpu_actions.config.host import HostConfig
from gpu_actions.models import Frozen, Verdict
from gpu_actions.plan import Gate, Plan

if TYPE_CHECKING:
    from gpu_actions.host import Host

VERDICT_MAX_AGE_S = 3600.0
"""A verdict older than this says nothing of the host as it is; the plan is then made without one."""


class Planner:
    """Makes plans. `hosts` gives the built host of a name; `verdict` the last one of triage and how long ago it began."""

    def __init__(
        self,
        settings: Settings,
        *,
        actions: Mapping[str, ActionSpec],
        hosts: "Callable[[str], Host]",
        verdict: Callable[[str], tuple[Verdict, float] | None],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._actions = actions
        self._hosts = hosts
        self._verdict = verdict
        self._clock = clock

    def spec(self, action: str) -> ActionSpec:
        """The action of a name. Raises UserError."""
        if (spec := self._actions.get(action)) is None:
            raise UserError(f"There is no action {action!r};{_meant(action, self._actions)}.")
        return spec

    def host(self, name: str | None) -> HostConfig:
        """The host of a name, or the default one. Raises UserError."""
        if name is None:
            return self._settings.default_host
        if (host := self._settings.host(name)) is None:
            known = [host.name for host in self._settings.hosts]
            raise UserError(f"I know no host {name!r};{_meant(name, known)}.")
        return host

    async def plan(self, spec: ActionSpec, host: str, options: Mapping[str, str], requester: Person) -> Plan:
        """Make a plan with its gate. Raises UserError for wrong options, PlanRefused when it cannot work."""
        now = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)
        verdict, age_s = self._verdict(host) or (None, math.inf)
        made = await spec.plan(
            PlanRequest(
                host=self._hosts(host),
                arguments=typed_options(spec, options),
                requester=requester.name or requester.id,
                verdict=verdict,
                verdict_age_s=age_s,
                baselines_dir=self._settings.state_dir / "baselines",
                now_iso=now.isoformat(timespec="seconds"),
            )
        )
        return self._gated(made)

    def _gated(self, plan: Plan) -> Plan:
        rule = self._settings.access.approvals.get(plan.action)
        if rule is None:
            return plan
        people = "a person" if rule.approvals == 1 else f"{rule.approvals} people"
        gate = Gate(
            approvals=rule.approvals,
            approvers=rule.approvers,
            expires_s=rule.expires_s,
            remind_before_s=min(rule.remind_before_s, rule.expires_s / 2),
            reason=f"The settings ask for {people} of the role {rule.approvers} before {plan.action} changes anything.",
        )
        return plan.model_copy(update={"gate": gate})


def typed_options(spec: ActionSpec, options: Mapping[str, str]) -> Frozen:
    """Check options as people type them against the action's arguments. Raises UserError with one line."""
    known = tuple(spec.arguments.model_fields)
    for name in options:
        if name not in known:
            raise UserError(f"unknown option {name!r};{_meant(name, known, noun='options')}")
    try:
        return spec.arguments.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the options"
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise UserError(f"{spec.name} needs the option {field}: {field}=...") from None
        if not first["loc"]:
            raise UserError(f"{spec.name}: {reason}") from None
        raise UserError(f"{field}={first['input']}: {reason}") from None


def _meant(
    word: str, known: Mapping[str, object] | list[str] | tuple[str, ...], noun: str = "there are"
) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f" did you mean {close[0]}?" if close else ""
    listed = ", ".join(names) or "none"
    return f"{hint} {noun}: {listed}"
