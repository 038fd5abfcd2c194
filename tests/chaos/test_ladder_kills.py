"""kill -9 of the worker at every step of a step down and of a step up between the rungs of a ladder, under 60 streams.

All are heavy: a run starts a dozen workers. `test_saturated_kills` does the same in a fallback and a restore.
"""

from pathlib import Path

import pytest

from bot.store.records import RunStatus
from tests.chaos.real_host import real_host
from tests.scenarios.saturated import BUSY, busy_clients, lost_text

RUNG_FLAGS = BUSY["fb"]
HOST = {
    **BUSY,
    "fallback": {**BUSY["fallback"], "validate_load": {"duration_s": 1, "target_qps": 10}},
    "restore": {
        "stages_percent": [50, 100],
        "hold_s": 0.7,
        "keep_fallback_warm_s": 0,
        "load": {"duration_s": 1, "target_qps": 10},
    },
}
LADDER = {
    "big": {"max_concurrent": 64, "flags": [*RUNG_FLAGS[:-1], "64"]},
    "small": {"max_concurrent": 26, "flags": RUNG_FLAGS},
}


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="during every step of a real fallback whose highest rung does not generate",
    after="succeeded; the next rung below serves; no other rung is left; no request lost",
)
@pytest.mark.heavy
@pytest.mark.timeout(400)
async def test_a_step_down_survives_a_kill_at_every_step_and_one_rung_is_left(tmp_path: Path) -> None:
    failing = tmp_path / "fails"
    failing.write_text("99")
    ladder = {**LADDER, "big": {"flags": ["--fail-starts", str(failing)]}}
    async with real_host(tmp_path, **HOST, ladder=ladder) as it:
        await it.ready(it.worker("inside"))
        async with busy_clients(it.site) as account:
            run = await it.start("fallback", skip_validation="yes")
            run, died = await it.ended_among_kills(run.id, "inside")
        assert (run.status, it.site.host.rung) == (RunStatus.SUCCEEDED, "small"), run
        assert died >= 4
        assert account.lost == [], lost_text(account)
        await it.check_end("fallback")


@pytest.mark.chaos(
    fault="kill -9 of the worker",
    at="every step of a step up from a smaller rung to a bigger one",
    after="succeeded; the bigger rung serves; the smaller one is stopped; no request lost",
)
@pytest.mark.heavy
@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", ["inside", "after-row"])
async def test_a_step_up_survives_a_kill_at_every_step(tmp_path: Path, mode: str) -> None:
    async with real_host(tmp_path, **HOST, ladder=LADDER) as it:
        end = await it.site.run(await it.site.plan(skip_validation=True, rung="small"))
        assert end.ended.status == "succeeded", end
        await it.ready(it.worker(mode))
        async with busy_clients(it.site) as account:
            run = await it.start("restore", rung="big")
            await it.approve(run.id)
            run, died = await it.ended_among_kills(run.id, mode, timeout_s=200)
        assert (run.status, it.site.host.rung) == (RunStatus.SUCCEEDED, "big"), run
        assert died >= 6
        assert account.lost == [], lost_text(account)
        await it.check_end("fallback")
