"""The texts of alerts: what a monitor or Alertmanager saw, before and beside the verdict card."""

from bot.presenter.message import Message, actions, button, compose, context, header, section
from bot.presenter.mrkdwn import code, duration, one_line
from bot.presenter.view import View
from gpu_actions.models import VerdictKind

ACKNOWLEDGE = "acknowledge"


def alert(
    host: str, cause: str, *, title: str, source: str, reason: str, verdict: VerdictKind, view: View
) -> Message:
    """The first message of an incident that nobody opened by hand."""
    first = f"ALERT: {title}"
    todo = (
        "*What to do:* read the verdict card that follows, with the evidence of this moment; *Start fallback* is on it."
        if verdict is VerdictKind.FALL_BACK
        else "*What to do:* read the verdict card that follows, with the evidence of this moment."
    )
    return compose(
        one_line(first),
        [
            header(first),
            section(f":rotating_light: {todo}"),
            actions(button("Acknowledge", ACKNOWLEDGE, f"{host}:{cause}")),
            context(f"seen by {one_line(source)}: {one_line(reason, 300)}"),
        ],
    )


def joined(host: str, cause: str, *, source: str, reason: str) -> Message:
    """A reply in the incident's thread: one more thing was seen."""
    text = f":rotating_light: Also seen by {one_line(source)}: *{one_line(cause)}* ({one_line(reason, 300)})."
    return compose(text, [section(text), actions(button("Acknowledge", ACKNOWLEDGE, f"{host}:{cause}"))])


def cleared(host: str, *, source: str, reason: str) -> Message:
    """A reply: what was seen is seen no more. People close the incident."""
    text = (
        f":large_green_circle: {one_line(source).capitalize()} sees no fault on {one_line(host)} any more "
        f"({one_line(reason, 200)})."
    )
    return compose(text, [section(text)])


def resolved(host: str, name: str) -> Message:
    """A reply: Alertmanager says that one alert is over. Others may still fire."""
    text = f":large_green_circle: Alertmanager: {one_line(name)} is resolved on {one_line(host)}."
    return compose(text, [section(text)])


def blind(host: str, *, source: str, reason: str) -> Message:
    text = (
        f":black_circle: {one_line(source).capitalize()} cannot see {one_line(host)}: {one_line(reason, 300)}. "
        "That says nothing about its health."
    )
    return compose(text, [section(text)])


def sighted(host: str, *, source: str) -> Message:
    text = f":large_green_circle: {one_line(source).capitalize()} sees {one_line(host)} again."
    return compose(text, [section(text)])


def acknowledged(host: str, cause: str, *, quiet_s: float) -> Message:
    """The answer to a press of Acknowledge."""
    text = (
        f":white_check_mark: {code(cause)} on {one_line(host)} is acknowledged: no new alert of it for {duration(quiet_s)}, "
        "or until it is over. Triage and fallback are not held by that, a fallback that starts by itself is."
    )
    return compose(text, [section(text)])


def falls_back_by_itself(host: str, cause: str, run_id: str, view: View) -> Message:
    """Said in the channel when the settings let a cause start the fallback."""
    first = f"AUTOMATIC FALLBACK on {host}: {cause}"
    return compose(
        first,
        [
            header(first),
            section(
                f":rotating_light: *What to do:* watch {code(run_id)}; to end it: {view.command('fallback', f'stop {host}')}. "
                f"{code(cause)} is in {code('monitors.auto_fallback')} of the settings, and a fresh triage says fall back."
            ),
        ],
    )


def holds_back(host: str, cause: str, why: str) -> Message:
    """Said in the thread when a guard rail kept the automatic fallback from starting."""
    text = (
        f":no_entry: No automatic fallback on {one_line(host)} for {code(cause)}: {one_line(why, 300)}. "
        "A person must decide."
    )
    return compose(text, [section(text)])
