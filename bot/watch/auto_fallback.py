"""The guard rails of the fallback that starts by itself: which one holds it back, in words. Pure.

Off unless `monitors.auto_fallback` names the cause. Whatever is not certain holds it back: a person can press the button.
"""

from bot.presenter.verdict_card import verdict_of
from bot.settings.model import MonitorSettings
from bot.store.records import RunRecord
from gpu_actions.models import VerdictKind

FRESH_S = 180.0
"""A verdict older than this says nothing about now (Slack may have been away for an hour between the two)."""


def held_back(
    settings: MonitorSettings,
    *,
    triage: RunRecord,
    acknowledged: str,
    fallback: RunRecord | None,
    restore: RunRecord | None,
    now_s: float,
) -> str:
    """Why no fallback may start by itself; empty when it may.

    `triage` is the run that looked after the alarm; `acknowledged` a cause that a person has acknowledged on the host (empty:
    none); `fallback` and `restore` are the newest runs of these actions on the host.
    """
    verdict = verdict_of(triage)
    if verdict is None or verdict.verdict is not VerdictKind.FALL_BACK:
        says = "came to no verdict" if verdict is None else f"says {verdict.verdict.value.replace('_', ' ')}"
        return f"a fresh triage {says}"
    if (age_s := now_s - (triage.ended_at or triage.created_at)) > FRESH_S:
        return f"the triage is {age_s / 60:.0f} min old"
    if verdict.cause not in settings.auto_fallback:
        return f"a fresh triage says {verdict.cause}, which is not in monitors.auto_fallback"
    if acknowledged:
        return f"somebody acknowledged {acknowledged}, so people are at work"
    pause_s = settings.auto_fallback_pause_s
    if fallback is not None and now_s - fallback.created_at < pause_s:
        return (
            f"{fallback.id} was started less than {pause_s / 3600:g} h ago (monitors.auto_fallback_pause_s)"
        )
    if (
        restore is not None and restore.started_at is not None
    ):  # one refused before it touched anything counts for nothing
        if restore.ended_at is None:
            return f"{restore.id} is changing the host"
        pause_s = settings.auto_fallback_after_restore_s
        if now_s - restore.ended_at < pause_s:
            return f"{restore.id} ended less than {pause_s / 60:g} min ago (monitors.auto_fallback_after_restore_s)"
    return ""
