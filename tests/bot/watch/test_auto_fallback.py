"""The guard rails of the automatic fallback: each alone prevents it, and if all pass it may start."""

import pytest

from bot.settings.watch import MonitorSettings
from bot.store.records import Person, Place, RunRecord, RunStatus, StepRecord, StepStatus
from bot.watch.auto_fallback import FRESH_S, why_not
from gpu_actions.models import Verdict, VerdictKind

NOW = 1_000_000.0
SETTINGS = MonitorSettings(auto_fallback=("nccl_hang",))
HANGS = Verdict(verdict=VerdictKind.FALL_BACK, cause="nccl_hang", summary="it hangs")


def run(action: str, *, age_s: float, verdict: Verdict | None = None, touched: bool = True) -> RunRecord:
    """A run that took ten seconds and ended `age_s` ago."""
    step = StepRecord(step_id="look", title="look", status=StepStatus.DONE, verdict=verdict)
    return RunRecord(
        id=f"{action}-1",
        action=action,
        host="toy",
        status=RunStatus.SUCCEEDED,
        requester=Person(id="monitor"),
        place=Place(channel="C1"),
        created_at=NOW - age_s - 10,
        started_at=NOW - age_s - 9 if touched else None,
        ended_at=NOW - age_s,
        steps=(step,),
    )


def why(**changes: object) -> str:
    given = {
        "triage": run("triage", age_s=1, verdict=HANGS),
        "acknowledged": "",
        "fallback": None,
        "restore": None,
        "now_s": NOW,
        **changes,
    }
    return why_not(SETTINGS, **given)  # type: ignore[arg-type]


def test_the_fallback_may_start_if_every_guard_rail_passes() -> None:
    assert why() == ""
    long_ago = {"fallback": run("fallback", age_s=21_600), "restore": run("restore", age_s=3600)}
    assert why(**long_ago) == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"triage": run("triage", age_s=1)}, "a fresh triage came to no verdict"),
        (
            {
                "triage": run(
                    "triage", age_s=1, verdict=HANGS.model_copy(update={"verdict": VerdictKind.UNKNOWN})
                )
            },
            "a fresh triage says unknown",
        ),
        ({"triage": run("triage", age_s=FRESH_S + 1, verdict=HANGS)}, "the triage is 3 min 1 s old"),
        (
            {"triage": run("triage", age_s=1, verdict=HANGS.model_copy(update={"cause": "gpu_lost"}))},
            "gpu_lost, which is not in monitors.auto_fallback",
        ),
        ({"acknowledged": "nccl_hang"}, "nccl_hang has been acknowledged"),
        ({"fallback": run("fallback", age_s=21_500)}, "fallback-1 was started less than 6 h ago"),
        ({"fallback": run("fallback", age_s=60, touched=False)}, "fallback-1 was started less than 6 h ago"),
        ({"restore": run("restore", age_s=3500)}, "restore-1 ended less than 1 h ago"),
    ],
)
def test_each_guard_rail_alone_prevents_the_fallback(changes: dict[str, object], says: str) -> None:
    assert says in why(**changes)


def test_a_restore_that_never_started_does_not_prevent_the_fallback() -> None:
    assert why(restore=run("restore", age_s=60, touched=False)) == ""


def test_a_running_restore_prevents_the_fallback_until_it_ends() -> None:
    at_work = run("restore", age_s=9000).model_copy(update={"ended_at": None, "status": RunStatus.RUNNING})
    assert "restore-1 is changing the host" in why(restore=at_work)
