"""A disk that fills up during a real run: a small file system, filled to its last byte."""

import asyncio
import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bot.store.records import RunStatus
from gpu_actions.forensics.action import SPEC as FORENSICS
from gpu_actions.forensics.verify import check_bundle
from gpu_actions.serving.interfaces import UnitError
from gpu_actions.serving.units.process import ProcessUnit, SupervisedProcess
from tests.chaos.conftest import MakeSite
from tests.chaos.real_host import real_host
from tests.gpu_actions.site import data_of, summary_of
from tests.scenarios.saturated import BUSY, busy_clients, lost_text

SmallDisk = Callable[[Path, str], Path]


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    """Mount a small tmpfs on a new folder for the duration of the block."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> Path:
        folder.mkdir(parents=True)
        argv = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this machine does not let us mount a tmpfs: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def fill(folder: Path) -> Path:
    """Fill the file system."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    with pytest.raises(OSError, match="No space left") as full:
        (folder / "one more").write_bytes(b"x" * 4096)
    assert full.value.errno == errno.ENOSPC
    (folder / "one more").unlink(missing_ok=True)
    return filler


@pytest.mark.chaos(
    fault="disk full",
    at="the run's folder, before the first step, tp hung",
    after="succeeded with warnings: evidence and benchmark file missing and named; the fallback serves",
)
async def test_a_full_disk_does_not_prevent_the_fallback_of_a_hung_host(
    site_with: MakeSite, small_disk: SmallDisk
) -> None:
    site = await site_with()
    await site.freeze_rank()
    plan = await site.plan(skip_validation=True)
    fill(small_disk(site.folder / "runs" / "fb-full", "64k"))
    end = await site.run(plan, run_id="fb-full")
    assert end.ended.status == "succeeded", (end.ended, [s.outcome.summary for s in end.steps])
    assert {"capture", "warm"} <= set(end.ended.warnings)
    assert "No space left" in summary_of(end, "capture")
    assert "No space left" in summary_of(end, "warm")
    assert data_of(end, "route")["first_token_through_router_s"] > 0
    await site.check_serving("fallback")


@pytest.mark.chaos(
    fault="disk full",
    at="the run's folder, in the middle of an evidence bundle",
    after="failed and said; no half bundle; the tier serves on; with room again the bundle is whole",
)
async def test_a_disk_that_fills_in_the_middle_of_a_bundle_leaves_no_half_of_one(
    site_with: MakeSite, small_disk: SmallDisk
) -> None:
    site = await site_with()
    folder = small_disk(site.folder / "runs" / "fo-full", "256k")
    filler = fill(folder)
    os.truncate(filler, filler.stat().st_size - 2 * 4096)  # a note's page, and the bundle's first
    plan = await site.plan(FORENSICS, budget=4)
    end = await site.run(plan, run_id="fo-full")
    assert "No space left" in summary_of(end, "capture") and not end.steps[0].artifacts
    assert {path.name for path in folder.iterdir()} == {"filler", ".began.note.json"}
    assert (await site.through.complete("still here", max_tokens=2, timeout_s=10)).text
    filler.unlink()
    end = await site.run(plan, run_id="fo-full")
    (bundle,) = end.steps[0].artifacts
    assert check_bundle(bundle.path.read_bytes()).problem == ""


@pytest.mark.chaos(
    fault="disk full",
    at="the whole state folder with the bot's database, during a fallback",
    after="the run waits and continues when there is room again: succeeded, no request lost",
)
@pytest.mark.timeout(240)
@pytest.mark.parametrize("step", ["warm", pytest.param("drain", marks=pytest.mark.heavy)])
async def test_a_run_whose_database_is_full_continues_when_there_is_room_again(
    tmp_path: Path, small_disk: SmallDisk, step: str
) -> None:
    folder = small_disk(tmp_path / "small", "24m")
    async with real_host(folder, **{**BUSY, "fallback": {**BUSY["fallback"], "min_free_disk_gib": 0}}) as it:
        await it.ready(it.worker("none"))
        async with busy_clients(it.site) as account:
            run = await it.start("fallback", skip_validation="yes")
            await it.until(run.id, lambda run: any(s.step_id == step for s in run.steps))
            filler = fill(folder)
            await asyncio.sleep(2)
            stuck = it.store.get(run.id)
            assert stuck is not None
            assert not stuck.status.final, stuck
            filler.unlink()
            run, died = await it.ended_among_kills(run.id, "none")
        assert died == 0
        assert run.status is RunStatus.SUCCEEDED, run
        assert account.lost == [], lost_text(account)
        await it.check_end("fallback")


@pytest.mark.chaos(
    fault="disk full",
    at="the unit's own folder, a running tier is frozen and stopped",
    after="stopped and frozen, with a warning in the log",
)
async def test_a_tier_is_frozen_and_stopped_although_its_folder_is_full(
    tmp_path: Path, small_disk: SmallDisk
) -> None:
    folder = small_disk(tmp_path / "disk", "1m")
    unit = SupervisedProcess("tp", ProcessUnit(argv=("sleep", "300"), stop_grace_s=5), state_dir=folder)
    await unit.start()
    filler = fill(folder)
    try:
        await unit.freeze("a test of a full disk")
        report = await unit.stop()
        assert report.was_active
        state = await unit.state()
        assert (state.active, state.pids, state.frozen) == (False, (), True)
        with pytest.raises(UnitError, match="frozen"):
            await unit.start()
    finally:
        filler.unlink()
        await unit.unfreeze()
        await unit.stop(grace_s=0)
