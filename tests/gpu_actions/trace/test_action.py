"""The trace action takes only regular files of the engine's trace folder, and always stops the profiler."""

import os
from pathlib import Path

import pytest

from gpu_actions.serving.interfaces import EngineError
from gpu_actions.trace.action import SPEC as TRACE
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import Site, data_of, statuses, summary_of


class Profiler:
    """A stand-in for the engine's profiler that writes a trace when it starts and names files when it stops."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = site.folder / "traces"
        self.folder.mkdir()
        self.files: list[Path] = []
        self.running = False
        engine = site.host.tp.engine
        monkeypatch.setattr(engine, "start_profile", self.start)
        monkeypatch.setattr(engine, "stop_profile", self.stop)
        monkeypatch.setattr(engine, "profile_folder", lambda: self.folder)

    async def start(self, *, max_iterations: int) -> None:
        self.running = True
        trace = '{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "gemm", "ts": 0, "dur": 9}]}'
        (self.folder / "rank0.trace.json").write_text(trace)

    async def stop(self) -> tuple[Path, ...]:
        if not self.running:
            raise EngineError("no profile is running")
        self.running = False
        return tuple(self.files)


async def test_only_regular_files_of_the_trace_folder_are_taken(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await site_with()
    profiler = Profiler(site, monkeypatch)
    secret = site.folder / "secret.json"
    secret.write_text("TOKEN=hush")
    (profiler.folder / "linked.json").symlink_to(secret)
    os.link(secret, profiler.folder / "hard.json")
    own = profiler.folder / "rank0.trace.json"
    profiler.files = [
        own,
        profiler.folder / "linked.json",
        profiler.folder / "hard.json",
        secret,
        Path("/proc/self/environ"),
    ]
    end = await site.run(await site.plan(TRACE, duration=1))
    assert statuses(end) == [("profile", "warning"), ("tabulate", "done")]
    assert [artifact.name for artifact in end.steps[0].artifacts] == [own.name]
    summary = summary_of(end, "profile")
    assert "1 trace file(s)" in summary
    for path in profiler.files[1:]:
        assert str(path) in summary
    assert not any(b"hush" in artifact.path.read_bytes() for step in end.steps for artifact in step.artifacts)
    assert "gemm" in data_of(end, "tabulate")["thread_text"]


async def test_a_trace_without_any_usable_file_fails_with_the_reasons(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await site_with()
    profiler = Profiler(site, monkeypatch)
    profiler.files = [Path("/etc/hostname")]
    end = await site.run(await site.plan(TRACE, duration=1, load=False))
    assert statuses(end)[0] == ("profile", "failed")
    assert "/etc/hostname is not in the folder" in summary_of(end, "profile")
    assert not profiler.running
