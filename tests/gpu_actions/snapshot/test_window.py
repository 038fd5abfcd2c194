"""The window between the two readings is waited for only by sources whose evidence needs it."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.collector import Window
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.triage.judge import judge
from tests.gpu_actions.fakes import FakeEngine

StartEngine = Callable[..., Awaitable[FakeEngine]]
WINDOW_S = 30.0
LIMITS = TriageThresholds(window_s=WINDOW_S, completion_deadline_s=20)

QUIET = ("gpus=8",)
CASES: dict[str, tuple[tuple[str, ...], dict[str, object], bool]] = {
    "an idle tier on GPUs without an error since boot": (QUIET, {}, False),
    "a lost GPU under an idle tier": ((*QUIET, "gpu.3.fail.*=15"), {}, False),
    "a link that is down": ((*QUIET, "gpu.3.link.4.active=0"), {}, False),
    "a link with errors since boot, which may grow": ((*QUIET, "gpu.3.link.4.crc=21"), {}, True),
    "a GPU that heat slows down at the moment": ((*QUIET, "gpu.3.event_reasons=0x20"), {}, True),
    "a GPU at work": ((*QUIET, "gpu.3.utilisation=40"), {}, True),
    "traffic": (QUIET, {"running": 3, "tokens_per_s": 50}, True),
}


@pytest.mark.parametrize("name", CASES)
async def test_the_window_ends_early_only_if_nothing_needs_to_be_observed(
    start_engine: StartEngine, fake_nvml: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    lines, fields, whole = CASES[name]
    limits = LIMITS.model_copy(update={"window_s": 0.8}) if whole else LIMITS
    log = tmp_path / "kernel.log"
    log.write_text("kernel: usb 1-1: new device\n")
    fake_nvml(*lines)
    engine = await start_engine(**fields)
    target = TriageTarget(host="h", expect_gpus=8, engine_url=engine.url, model="m", kernel_log=log)
    snapshot = await collect(target, limits)
    if whole:
        assert snapshot.window_s == limits.window_s
        assert snapshot.nvml is not None
        assert snapshot.nvml.window_s is not None and snapshot.nvml.window_s >= limits.window_s / 2
    else:
        assert snapshot.window_s < WINDOW_S / 2
        assert snapshot.nvml is not None and snapshot.nvml.gpus[0].last is not None
    cause = {"a lost GPU under an idle tier": "gpu_lost", "a link that is down": "nvlink_partial"}.get(name)
    assert cause is None or judge(snapshot, limits).cause == cause


async def test_who_asks_for_a_window_gets_the_whole_one(start_engine: StartEngine) -> None:
    engine = await start_engine()
    target = TriageTarget(host="h", expect_gpus=0, engine_url=engine.url, model="m")
    limits = LIMITS.model_copy(update={"window_s": 0.7})
    shortened = await collect(target, limits)
    whole = await collect(target, limits, whole_window=True)
    assert whole.window_s == 0.7
    assert whole.engine is not None and whole.engine.samples[1].at_s - whole.engine.samples[0].at_s >= 0.69
    assert shortened.window_s < 0.7


async def test_an_idle_engine_that_does_not_answer_is_observed_for_the_whole_window(
    start_engine: StartEngine,
) -> None:
    engine = await start_engine(completion="hang")
    limits = LIMITS.model_copy(update={"window_s": 0.6, "completion_deadline_s": 0.3})
    target = TriageTarget(host="h", expect_gpus=0, engine_url=engine.url, model="m")
    snapshot = await collect(target, limits)
    assert snapshot.window_s == 0.6


async def test_a_window_that_nobody_observes_is_not_over_before_its_time() -> None:
    window = Window({"a", "b"})
    window.needs_no_more("a")
    assert not window.over.is_set()
    window.needs_no_more("b")
    assert window.over.is_set()
    asked_for = Window({"a"}, whole=True)
    asked_for.needs_no_more("a")
    assert not asked_for.over.is_set()
