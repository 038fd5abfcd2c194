"""From a request to a plan: the action, its typed options, the action's own planning, and the approvals that it needs."""

import datetime
import math
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from bot.hosts import Hosts, did_you_mean
from bot.settings.model import Settings
from bot.store.records import Person, UserError
from gpu_actions.action import ActionSpec, PlanRequest
from gpu_actions.models import Frozen, Verdict
from gpu_actions.plan import Gate, Plan

VERDICT_MAX_AGE_S = 3600.0
"""A verdict older than this says nothing about the host any more; the plan is then made without one."""


class Planner:
    """Makes plans. `verdict(host)` returns the last verdict of triage and its age in seconds."""

    def __init__(
        self,
        settings: Settings,
        *,
        actions: Mapping[str, ActionSpec],
        hosts: Hosts,
        verdict: Callable[[str], tuple[Verdict, float] | None],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._actions = actions
        self._hosts = hosts
        self._verdict = verdict
        self._clock = clock

    def action(self, name: str) -> ActionSpec:
        """Return an action by name. Raise UserError for an unknown one."""
        if (action := self._actions.get(name)) is None:
            raise UserError(f"There is no action {name!r};{did_you_mean(name, self._actions)}.")
        return action

    async def plan(
        self,
        action: str,
        host: str,
        options: Mapping[str, str],
        requester: Person,
        *,
        starts: bool = False,
    ) -> Plan:
        """Make a plan with the approvals it needs. Raise UserError for wrong options, PlanRefused if it cannot work.

        `starts`: a run will start with it, so the action may prepare the host for it before it plans (`give_back` undoes that).
        """
        spec = self.action(action)
        now = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)
        verdict, age_s = self._verdict(host) or (None, math.inf)
        make = spec.plan_start if starts and spec.plan_start is not None else spec.plan
        plan = await make(
            PlanRequest(
                host=self._hosts.get(host),
                arguments=typed_options(spec, options),
                requester=requester.name or requester.id,
                verdict=verdict,
                verdict_age_s=age_s,
                baselines_dir=self._settings.state_dir / "baselines",
                now_iso=now.isoformat(timespec="seconds"),
            )
        )
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

    async def give_back(self, action: str, host: str) -> None:
        """Undo what the action prepared for a run that ends before its first step."""
        spec = self._actions.get(action)
        if spec is not None and spec.give_back is not None:
            await spec.give_back(self._hosts.get(host))


SAYS = {
    "float_parsing": "write a number, such as {field}=10",
    "int_parsing": "write a whole number, such as {field}=10",
    "int_from_float": "write a whole number, such as {field}=10",
    "bool_parsing": "write {field}=yes or {field}=no",
    "literal_error": "write {field}= with one of: {expected}",
    "enum": "write {field}= with one of: {expected}",
    "greater_than": "it must be above {gt:g}",
    "greater_than_equal": "it must be at least {ge:g}",
    "less_than": "it must be below {lt:g}",
    "less_than_equal": "it must be at most {le:g}",
}
"""What to write instead, by the type of pydantic's error."""


def typed_options(spec: ActionSpec, options: Mapping[str, str]) -> Frozen:
    """Validate typed options against the action's arguments. Raise UserError with one line for the first problem."""
    known = tuple(spec.arguments.model_fields)
    for name in options:
        if name not in known:
            raise UserError(f"unknown option {name!r};{did_you_mean(name, known, noun='options')}")
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
        if say := SAYS.get(first["type"]):
            reason = say.format(field=field, **first.get("ctx", {}))
        raise UserError(f"{field}={first['input']}: {reason}") from None
