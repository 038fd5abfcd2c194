"""What a person may do and why, for `/gpu whoami` and the Home tab. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bot.presenter.message import Lines, Message, compose, section
from bot.presenter.mrkdwn import one_line, user, words
from bot.presenter.render_context import RenderContext
from bot.store.records import Person


@dataclass(frozen=True, kw_only=True)
class Rights:
    """One person's rights: `kind` (a full member, a guest ...), and the roles with why the person holds or lacks each.

    `may` says what each role may do, in words; `no_reading` why the person may not even start a triage.
    """

    person: Person
    kind: str
    no_reading: str = ""
    holds: Mapping[str, str] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)
    may: Mapping[str, str] = field(default_factory=dict)


def role_words(change: str, actions: Sequence[str], gated: Sequence[str]) -> dict[str, str]:
    """Return what each role may do; `change` is the role that changes need, `actions` need it, `gated` need approvals."""
    approve = f"approve and deny {words(gated)}" if gated else "approve and deny"
    return {
        change: f"start and stop {words(actions)}, and keep incidents",
        "approver": approve,
        "override": f"overrule a missing approval of {words(gated)}"
        if gated
        else "overrule a missing approval",
    }


def rights_lines(rights: Rights) -> list[str]:
    """Return one line a role, what the person may do first."""
    lines = [":white_check_mark: read everything" + ("" if rights.no_reading else ", and start a triage")]
    lines += [f":no_entry: start a triage: {one_line(rights.no_reading, 400)}"] if rights.no_reading else []
    lines += [
        f":white_check_mark: {_may(rights, role)} ({role}, {one_line(why)})"
        for role, why in rights.holds.items()
    ]
    lines += [f":no_entry: {_may(rights, role)}: {one_line(why, 400)}" for role, why in rights.lacks.items()]
    return lines


def whoami(rights: Rights, context: RenderContext) -> Message:
    """Return what a person may do and why."""
    first = f"You are {user(rights.person)}, {one_line(rights.kind)}. You may:"
    return compose(first, [section(first), Lines(tuple(rights_lines(rights)), noun="roles")])


def _may(rights: Rights, role: str) -> str:
    return one_line(rights.may.get(role, f"act as {role}"))
