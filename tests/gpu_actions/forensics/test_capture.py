"""The capture against a real tier: what is in the bundle of a hung one, and that nothing was disturbed."""

import os
import signal
import tarfile
from pathlib import Path

from gpu_actions.forensics.action import SPEC as FORENSICS
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import data_of, statuses


async def test_a_bundle_of_a_frozen_tier_holds_the_evidence_and_leaves_it_as_it_is(
    site_with: MakeSite,
) -> None:
    site = await site_with(
        unit={"env": {"NCCL_DEBUG": "WARN", "NCCL_MYSTERY": "hidden", "HF_TOKEN": "verysecret"}}
    )
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
