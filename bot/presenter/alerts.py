"""The texts of alerts: what a monitor or Alertmanager reported, before and beside the verdict card."""

from bot.presenter.message import Block, Message, actions, button, compose, footnote, header, section
from bot.presenter.mrkdwn import capitalized, code, duration, gist, one_line
from bot.presenter.render_context import RenderContext
from bot.store.records import Alert, MonitorNotice
from gpu_actions.models import VerdictKind

ACKNOWLEDGE = "acknowledge"
REASON_WORDS = 20


def opened(alert: Alert) -> Message:
    """Return the first message of an incident that an alert opens."""
    first = f"ALERT: {alert.title}"
    card = "the card that follows has the evidence"
    todo = f"{card} and *Start fallback*." if alert.verdict is VerdictKind.FALL_BACK else f"{card}."
    true = capitalized(gist(alert.reason, REASON_WORDS))
    parts = [
        header(first),
        section(f":rotating_light: {true}\n*Next:* {todo}"),
        _acknowledge(alert),
        footnote(f"reported by {gist(alert.source, 6)}"),
    ]
    return compose(one_line(first), parts)


def page(alert: Alert, *, automatic: bool) -> str:
    """Return what to do, for somebody whom Slack does not reach."""
    by_itself = "A fallback starts by itself if triage agrees. " if automatic else ""
    return (
        f"{by_itself}If Slack is away, on {alert.host}: `gpu-oncall triage`, then `gpu-oncall fallback --local`. "
        "Slack is told later."
    )


def joined(alert: Alert) -> Message:
    """Return the reply in an open incident's thread about one more cause."""
    who, why = capitalized(gist(alert.source, 6)), gist(alert.reason, REASON_WORDS)
    text = f":rotating_light: {who} also reports *{one_line(alert.cause)}* ({why})."
    return compose(text, [section(text), _acknowledge(alert)])


def group(alert: Alert, *, is_root: bool, total: int, firing: int) -> Message:
    """Return the message of a group of alerts with one cause: what it said first, and how many there are now."""
    count = "1 alert" if total == 1 else f"{total} alerts"
    if firing == 0:
        text = (
            f":large_green_circle: *{one_line(alert.cause)}* on {one_line(alert.host)} is resolved ({count})."
        )
        todo = "The incident stays open until a person closes it." if is_root else ""
        return compose(text, [section(text), *([footnote(todo)] if todo else [])])
    shown = opened(alert) if is_root else joined(alert)
    counted = f"{count} so far, {firing} firing; the last one: {gist(alert.reason, 10)}"
    return compose(f"{shown.text} ({count})", [*shown.blocks, footnote(counted)])


def noticed(notice: MonitorNotice) -> Message:
    """Return the reply about what a monitor says that is no alert."""
    host, source, reason = notice.host, notice.source, notice.reason
    match notice.notice:
        case "clear":
            return cleared(host, source=source, reason=reason)
        case "ease":
            return eased(host, source=source, cause=notice.cause, reason=reason)
        case "blind":
            return blind(host, source=source, reason=reason)
        case "sighted":
            return sighted(host, source=source)


def cleared(host: str, *, source: str, reason: str) -> Message:
    """Return the reply when a fault is gone. People close the incident."""
    who, why = capitalized(gist(source, 6)), gist(reason, REASON_WORDS)
    return _line(f":large_green_circle: {who} no longer reports a fault on {one_line(host)} ({why}).")


def eased(host: str, *, source: str, cause: str, reason: str) -> Message:
    """Return the reply when one fault of several is gone."""
    who, why = capitalized(one_line(source)), one_line(reason, 200)
    return _line(
        f":large_green_circle: {who} no longer reports {one_line(cause)} on {one_line(host)} ({why})."
    )


def resolved(host: str, name: str) -> Message:
    """Return the reply when Alertmanager resolves one alert; others may still be firing."""
    return _line(f":large_green_circle: Alertmanager: {one_line(name)} is resolved on {one_line(host)}.")


def blind(host: str, *, source: str, reason: str) -> Message:
    return _line(
        f":black_circle: {capitalized(one_line(source))} cannot read {one_line(host)}: {gist(reason, REASON_WORDS)}. "
        "The host may be healthy or not."
    )


def sighted(host: str, *, source: str) -> Message:
    return _line(f":large_green_circle: {capitalized(one_line(source))} can read {one_line(host)} again.")


def acknowledged(host: str, cause: str, *, quiet_s: float) -> Message:
    """Return the answer to a press of Acknowledge."""
    return _line(
        f":white_check_mark: {code(cause)} on {one_line(host)} is acknowledged: no new alert about it for "
        f"{duration(quiet_s)}, or until it is over. Automatic fallback is off meanwhile; you can still start one yourself."
    )


def automatic_fallback(alert: Alert, run_id: str, context: RenderContext) -> Message:
    """Return the announcement in the channel when an alert starts the fallback automatically."""
    first = f"AUTOMATIC FALLBACK on {alert.host}: {alert.cause}"
    stop = context.command("fallback", f"stop {alert.host}")
    text = (
        f":rotating_light: {code(run_id)} runs: a fresh triage says fall back, and {code('monitors.auto_fallback')} of the "
        f"settings lists {code(alert.cause)}.\n*Next:* watch it; to stop it: {stop}."
    )
    return compose(first, [header(first), section(text)])


def no_automatic_fallback(alert: Alert, why: str) -> Message:
    """Return the reply when a guard rail kept the automatic fallback from starting."""
    return _line(
        f":no_entry: No automatic fallback on {one_line(alert.host)} for {code(alert.cause)}: {gist(why, REASON_WORDS)}. "
        "A person must decide."
    )


def _acknowledge(alert: Alert) -> Block:
    return actions(button("Acknowledge", ACKNOWLEDGE, f"{alert.host}:{alert.cause}"))


def _line(text: str) -> Message:
    return compose(text, [section(text)])
