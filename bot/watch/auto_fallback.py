"""The guard rails of the automatic fallback. Pure.

It is off unless `monitors.auto_fallback` names the cause. Any doubt keeps it from starting: a person can press the button.
"""

from bot.presenter.mrkdwn import duration
from bot.presenter.verdict_card import verdict_of
from bot.settings.watch import MonitorSettings
from bot.store.records import Alert, RunRecord
from gpu_actions.models import VerdictKind
from gpu_actions.triage.rule import rank_of_verdict

FRESH_S = 180.0
"""An older verdict is not trusted: Slack may have been away for an hour between the triage and now."""
RECENT_TRIAGE_S = 60.0
"""A triage that started within this time before an alert may serve for it."""
SAME_MOMENT_S = 15.0
"""Within this time a triage serves for an alert whatever its verdict; later, only if its verdict is at least as bad: a stall
that has become a reason to fall back needs its own card, with the button."""


def why_not(
    settings: MonitorSettings,
    *,
    triage: RunRecord,
    acknowledged: str,
    fallback: RunRecord | None,
    restore: RunRecord | None,
    now_s: float,
) -> str:
    """Return why the fallback may not start automatically; empty if it may.

    `triage` ran after the alert; `acknowledged` is an acknowledged cause on the host, or empty; `fallback` and `restore`
    are the newest runs of these actions on the host.
    """
    verdict = verdict_of(triage)
    if verdict is None or verdict.verdict is not VerdictKind.FALL_BACK:
        says = "came to no verdict" if verdict is None else f"says {verdict.verdict.value.replace('_', ' ')}"
        return f"a fresh triage {says}"
    if (age_s := now_s - (triage.ended_at or triage.created_at)) > FRESH_S:
        return f"the triage is {duration(age_s)} old"
    if verdict.cause not in settings.auto_fallback:
        return f"a fresh triage says {verdict.cause}, which is not in monitors.auto_fallback"
    if acknowledged:
        return f"{acknowledged} has been acknowledged, so people are at work"
    pause_s = settings.auto_fallback_pause_s
    if fallback is not None and now_s - fallback.created_at < pause_s:
        return f"{fallback.id} was started less than {duration(pause_s)} ago (monitors.auto_fallback_pause_s)"
    if restore is not None and restore.started_at is not None:  # one that never started changed nothing
        if restore.ended_at is None:
            return f"{restore.id} is changing the host"
        pause_s = settings.auto_fallback_after_restore_s
        if now_s - restore.ended_at < pause_s:
            ago = duration(pause_s)
            return f"{restore.id} ended less than {ago} ago (monitors.auto_fallback_after_restore_s)"
    return ""


def serves_for(triage: RunRecord, alert: Alert, *, by_monitor: bool) -> bool:
    """Return True if an earlier triage already shows what the alert is about."""
    age_s = alert.at_s - triage.created_at
    if age_s >= RECENT_TRIAGE_S or (not by_monitor and triage.status.final):
        return False
    if age_s < SAME_MOMENT_S or not triage.status.final:
        return True
    verdict = verdict_of(triage)
    return verdict is not None and rank_of_verdict(verdict.verdict) >= rank_of_verdict(alert.verdict)
