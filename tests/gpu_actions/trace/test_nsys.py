"""A tier whose unit was launched under nsys is traced by nsys: by plan and by hand, stopped always, without its secrets."""

import asyncio
import gzip
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_actions.plan import Plan
from gpu_actions.system.processes import run_process
from gpu_actions.trace import in_plan
from gpu_actions.trace.action import SPEC as TRACE
from gpu_actions.trace.in_plan import trace_steps
from gpu_actions.walk import WalkEnd, walk
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import TINY, Site, data_of, statuses, summary_of
from tests.gpu_actions.trace import nsys_stand_in

SHORT = {"in_plans": True, "duration_s": 0.3, "max_trace_mib": 1}
Launched = Callable[..., Awaitable[Site]]


@pytest.fixture
def nsys(tmp_path: Path) -> Path:
    program = tmp_path / "bin" / "nsys"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{Path(nsys_stand_in.__file__).read_text()}")
    program.chmod(0o755)
    return program


@pytest.fixture
def launched(site_with: MakeSite, nsys: Path) -> Launched:
    async def make(option: str = "--session-new=tp", **env: str) -> Site:
        app = [sys.executable, str(TINY), "--ranks", "2", "--name", "tp"]
        argv = [str(nsys), "launch", option, "--trace=cuda", *app]
        return await site_with(trace=SHORT, tp_engine={"kind": "vllm", "argv": argv}, unit={"env": env})

    return make


async def trace(site: Site, run_id: str = "fb-nsys", **options: Any) -> WalkEnd:
    plan = Plan(action="fallback", host="test", title="t", steps=trace_steps(site.host, site.host.tp))
    return await walk(plan, site.host, run_id=run_id, workdir=site.folder / run_id, **options)


def collecting(nsys: Path) -> bool:
    return (nsys.parent / "sessions" / "tp" / "output").exists()


async def test_a_unit_launched_under_nsys_is_traced_by_it_and_goes_on(launched: Launched, nsys: Path) -> None:
    site = await launched()
    end = await trace(site)
    assert statuses(end) == [("trace", "done"), ("trace-files", "done")], end
    assert not collecting(nsys)
    text = data_of(end, "trace-files")["thread_text"]
    assert "2 rank(s)" in text and "gemm" in text and "GPU idle" in text
    artifacts = {one.name: one.path for one in end.steps[-1].artifacts}
    assert set(artifacts) == {
        "trace_summary.png", "trace_summary.json", "trace_perfetto.json.gz", "fb-nsys_tp.nsys-rep",
    }  # fmt: skip
    events = json.loads(gzip.decompress(artifacts["trace_perfetto.json.gz"].read_bytes()))["traceEvents"]
    assert {(one["pid"], one["tid"]) for one in events} == {
        ("GPU 0", "stream 7"), ("GPU 0", "stream 8"), ("GPU 1", "stream 8"),
    }  # fmt: skip
    assert not list((site.folder / "fb-nsys").rglob("*.sqlite"))
    assert (await site.host.tp.engine.complete("still here", max_tokens=2, timeout_s=10)).text


async def test_a_report_that_holds_a_secret_of_the_unit_stays_on_the_host(launched: Launched) -> None:
    site = await launched(HF_TOKEN="not-of-any-known-format")
    end = await site.run(await site.plan(TRACE, duration=0.3))
    assert statuses(end) == [("profile", "warning"), ("tabulate", "done")], end
    summary = summary_of(end, "profile")
    assert "holds a secret (HF_TOKEN)" in summary and "not-of-any" not in summary
    (kept,) = [path for path in site.folder.rglob("*_tp.nsys-rep") if path.parent.name != "nsys"]
    assert str(kept) in summary and kept.stat().st_mode & 0o077 == 0
    assert not [one for step in end.steps for one in step.artifacts if one.name == kept.name]
    assert "gemm" in data_of(end, "tabulate")["thread_text"]


async def test_a_collection_is_stopped_with_its_run_and_one_of_somebody_else_goes_on(
    launched: Launched, nsys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await launched()
    monkeypatch.setattr(in_plan, "SERVING_S", 60)
    long = site.host.config.trace.model_copy(update={"duration_s": 60})
    object.__setattr__(site.host.config, "trace", long)
    stop = asyncio.Event()
    walking = asyncio.create_task(trace(site, "fb-stopped", stop=stop))
    async with asyncio.timeout(60):
        while not collecting(nsys):
            await asyncio.sleep(0.05)
        stop.set()
        assert (await walking).ended.status == "cancelled"
        while collecting(nsys):
            await asyncio.sleep(0.05)
    theirs = [str(nsys), "start", "--session=tp", "-o", str(site.folder / "theirs"), "-f", "true"]
    assert (await run_process(theirs, timeout_s=20)).exit_code == 0
    end = await trace(site, "fb-theirs")
    assert end.ended.status == "succeeded" and "already running" in summary_of(end, "trace")
    assert collecting(nsys)


LACKS = "echo error while loading shared libraries: libdw.so.1: cannot open shared object file >&2; exit 127"


@pytest.mark.parametrize(
    ("option", "importer", "says"),
    [
        ("--trace=cuda", None, "start it with --session-new=tp"),
        ("--session-new=tp", "", "install the whole nsight-systems package"),
        ("--session-new=tp", LACKS, "the package libdw1"),
        ("--session-new=tp", 'cp "$2" "$4"', "top:"),
    ],
    ids=["no name", "no importer", "an importer that lacks a library", "nsys alone does not call it"],
)
async def test_what_nsys_cannot_do_here_is_said_with_what_would_allow_it(
    launched: Launched, nsys: Path, option: str, importer: str | None, says: str
) -> None:
    """`importer`: the program that nsys could not run itself, as a shell command; empty if there is none."""
    if importer is not None:
        (nsys.parent / "no_importer").touch()
    if importer:
        program = nsys.parent.parent / "host-linux-x64" / "QdstrmImporter"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{importer}\n")
        program.chmod(0o755)
    end = await trace(await launched(option))
    assert end.ended.status == "succeeded"
    assert says in " ".join(step.outcome.summary for step in end.steps)
