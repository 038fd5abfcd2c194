"""The capture against a real tier: a hung one, one whose unit fails, and one that must not be disturbed."""

import asyncio
import json
import os
import resource
import signal
import tarfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from gpu_actions.forensics.action import SPEC as FORENSICS
from gpu_actions.forensics.bundle import make_bundle, read_manifest
from gpu_actions.forensics.item import Scope
from gpu_actions.forensics.items.metrics import metrics as metrics_evidence
from gpu_actions.serving.interfaces import UnitError, UnitState
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import data_of, statuses
from tests.gpu_actions.snapshot.test_flight_recorder import dump


async def test_a_bundle_of_a_frozen_tier_has_the_evidence_and_does_not_disturb_the_tier(
    site_with: MakeSite, tmp_path: Path
) -> None:
    dumps = {"TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(tmp_path / "trace_"), "WORLD_SIZE": "2", "RANK": "1"}
    site = await site_with(
        unit={"env": {"NCCL_DEBUG": "WARN", "NCCL_MYSTERY": "hidden", "HF_TOKEN": "verysecret", **dumps}}
    )
    (tmp_path / "trace_1").write_bytes(dump(251))
    rank = (await site.rank_pids())[0]
    os.kill(rank, signal.SIGSTOP)
    before = await site.host.tp.unit.state()
    end = await site.run(await site.plan(FORENSICS, budget=8))
    assert statuses(end) == [("capture", "done")]
    artifact = end.steps[0].artifacts[0]
    assert artifact.path.stat().st_size == artifact.size_bytes
    with tarfile.open(artifact.path) as tar:
        files = {}
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            files[member.name.removeprefix("bundle/")] = file.read().decode()
    assert "State:\tT (stopped)" in files["tp/processes.txt"]
    assert f"Process {before.main_pid}" in files[f"tp/stack_{before.main_pid}.txt"]
    assert "vllm:num_requests_running" in files["tp/metrics_1.txt"]
    assert files["tp/metrics_2.txt"].startswith("# HTTP 200")
    recorded = json.loads(files["tp/flight_recorder.jsonl"])
    assert (recorded["rank"], recorded["entries"][-1]["collective_seq_id"]) == (1, 251)
    assert "NCCL_DEBUG" in files["tp/environment.json"]
    assert "NCCL_MYSTERY" in files["tp/environment.json"]
    assert '"server": "tp"' in files["router/servers.json"]
    assert "ready" in files["tp/log.txt"]
    everything = "".join(files.values())
    assert "hidden" not in everything
    assert "verysecret" not in everything
    assert (await site.host.tp.unit.state()).pids == before.pids
    assert Path(f"/proc/{rank}/stat").read_text().split()[2] == "T"
    os.kill(rank, signal.SIGCONT)


async def test_the_evidence_of_a_moment_is_taken_once(site_with: MakeSite) -> None:
    site = await site_with()
    plan = await site.plan(FORENSICS, budget=3)
    first = await site.run(plan, run_id="fo-1")
    again = await site.run(plan, run_id="fo-1")
    assert data_of(first, "capture")["bundle"] == data_of(again, "capture")["bundle"]
    assert first.steps[0].artifacts == again.steps[0].artifacts


async def test_a_unit_that_fails_costs_its_own_items_and_not_the_bundle(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await site_with()

    async def state() -> UnitState:
        raise UnitError("the unit manager does not answer")

    monkeypatch.setattr(site.host.tp.unit, "state", state)
    end = await site.run(await site.plan(FORENSICS, budget=6))
    assert statuses(end) == [("capture", "done")]
    manifest = read_manifest(end.steps[0].artifacts[0].path)
    there = {entry.path for entry in manifest.entries}
    assert {"host/versions.json", "router/servers.json", "tp/log.txt", "tp/metrics_1.txt"} <= there
    missing = {entry.path: entry.reason for entry in manifest.missing}
    assert "the unit manager does not answer" in missing["tp/unit.json"]
    assert "the unit manager does not answer" in missing["tp/processes.txt"]


async def test_a_unit_that_never_answers_leaves_the_bundle_within_its_budget(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await site_with(up=False)

    async def state() -> UnitState:
        await asyncio.sleep(60)
        raise AssertionError("cancelled before")

    monkeypatch.setattr(site.host.tp.unit, "state", state)
    began = time.monotonic()
    end = await site.run(await site.plan(FORENSICS, budget=3))
    assert time.monotonic() - began < 10
    assert statuses(end) == [("capture", "done")]
    assert any(line.startswith("tp/unit.json: ") for line in data_of(end, "capture")["missing"])


@pytest.mark.parametrize(("size", "truncated"), [(175_000, False), (3_000_000, True)])
async def test_the_whole_metrics_page_is_kept_and_a_longer_one_is_called_truncated(
    site_with: MakeSite, size: int, truncated: bool
) -> None:
    site = await site_with(up=False)
    page = "".join(f"vllm:padding_{number} {number}\n" for number in range(200_000))[:size]

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=page)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", urlsplit(site.host.tp.engine.url).port).start()
    scope = Scope(host=site.host, budget_s=20, gap_s=0, tier=site.host.tp)
    made = await make_bundle(
        metrics_evidence.items(scope)[:1],
        path=site.folder / "b.tar.gz", host="h", run_id="r", budget_s=20, report=lambda *_: None,
    )  # fmt: skip
    await runner.cleanup()
    (entry,) = made.manifest.entries
    assert entry.truncated == truncated
    assert entry.note == ("only the first 2,048.0 KiB; the source has more" if truncated else "")
    whole_lines = page[: 2 * 1024**2].rpartition("\n")[0] if truncated else page
    assert abs(entry.size_bytes - len(whole_lines)) < 40


async def test_a_log_of_ten_gigabytes_gives_its_end_and_the_runbook_s_results_are_in_the_bundle(
    site_with: MakeSite,
) -> None:
    site = await site_with(up=False)
    folder = site.host.state_dir / "runs"
    for run, content in (("fb-old", "old"), ("fb-new", "new")):
        (folder / run / "single_gpu_fallback").mkdir(parents=True)
        for name in ("fallback_benchmark.json", "single_gpu_fallback/load_test.json", "trace_summary.json"):
            (folder / run / name).write_text(f'{{"run": "{content}"}}')
            os.utime(folder / run / name, (1, 1) if content == "old" else None)
    log = site.host.tp.unit.folder / "log"  # type: ignore[attr-defined]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        file.truncate(10 * 1024**3)
        file.seek(0, os.SEEK_END)
        file.write(b"".join(b"\nstep %d of the engine" % number for number in range(50_000)))
        file.write(b"\nthe last words of the engine\n")
    began, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = await site.run(await site.plan(FORENSICS, budget=8))
    assert time.monotonic() - began < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300 * 1024  # KiB
    bundle = end.steps[0].artifacts[0].path
    assert bundle.stat().st_size < 4 * 1024**2
    entries = {entry.path: entry for entry in read_manifest(bundle).entries}
    assert entries["tp/log.txt"].truncated and entries["tp/log.txt"].size_bytes <= 512 * 1024
    with tarfile.open(bundle) as tar:
        kept = {name: tar.extractfile(f"bundle/{name}").read().decode() for name in entries}  # type: ignore[union-attr]
    assert kept["tp/log.txt"].endswith("the last words of the engine\n")
    for name in (
        "fallback_benchmark.json",
        "single_gpu_fallback/load_test.json",
        "load_test_latest/load_test.json",
    ):
        assert kept[f"artifacts/{name}"] == '{"run": "new"}'
