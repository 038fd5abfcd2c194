"""The real nvidia-ml-py, in the real child, against a driver that the test wrote in C."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Severity, Verdict
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.collectors import nvml
from gpu_actions.snapshot.collectors.nvml import collect_nvml
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.system import wedged
from gpu_actions.system.proc import ProcessRow
from gpu_actions.tier.gpu_memory import read_gpus
from gpu_actions.triage.judge import judge
from tests.gpu_actions.triage import builders as make

Install = Callable[..., Path]
LIMITS = TriageThresholds(window_s=0.2, nvml_stall_s=0.5)


def triage_of(tmp_path: Path, *, gpus: int | None = 8) -> tuple[Snapshot, Verdict]:
    log = tmp_path / "kernel.log"
    log.write_text("kernel: usb 1-1: new device\n")
    target = TriageTarget(host="h1", expect_gpus=gpus, kernel_log=log)
    snapshot = asyncio.run(collect(target, LIMITS))
    return snapshot, judge(snapshot, LIMITS)


class Case(NamedTuple):
    lines: tuple[str, ...]
    verdict: str
    cause: str
    fallback: int | None
    gpus: int = 8
    absent: tuple[str, ...] = ()


BLACKWELL = ("gpu.*.name=NVIDIA B200", "gpu.*.link_speed=53125", "gpu.*.link_fields=0", "gpu.*.nvlink5=1")
OTHERS_DOWN = tuple(f"gpu.2.link.{number}.active=0" for number in range(18))
CASES = {
    "eight healthy GPUs": Case((), "healthy", "none", 0),
    "two healthy GPUs": Case(("gpus=2",), "healthy", "none", 0, gpus=2),
    "two GPUs in a VM that hides the far ends": Case(
        ("gpus=2", "gpu.*.link.*.remote=FFFFFFFF:FF:FF.F"), "healthy", "none", 0, gpus=2
    ),
    "errors since boot that do not grow": Case(
        ("gpu.*.link.*.crc=21", "gpu.0.link.3.replay=9", "gpu.1.pcie_replays=70"), "healthy", "none", 0
    ),
    "idle GPUs at a lower PCIe generation": Case(("gpu.*.pcie_generation=1",), "healthy", "none", 0),
    "atomics over PCI not supported": Case(("p2p_other.*.*=5",), "healthy", "none", 0),
    "fabric health mask without a fault": Case(("gpu.*.fabric_mask=0",), "healthy", "none", 0),
    "one bad link": Case(("gpu.0.link.7.active=0",), "fall_back", "nvlink_partial", 1),
    "two GPUs with bad links to one switch": Case(
        ("gpu.0.link.7.active=0", "gpu.3.link.3.active=0"), "fall_back", "nvlink_partial", 1
    ),
    "a GPU without any link": Case(OTHERS_DOWN, "fall_back", "nvlink_loss", 0),
    "a link that replays": Case(("gpu.0.link.4.replay=10+3",), "watch", "nvlink_errors", 1),
    "a link that replays, on a driver without the fields": Case(
        ("gpu.0.link.4.replay=10+3", "gpu.*.link_fields=0"), "watch", "nvlink_errors", 1
    ),
    "eight healthy Blackwell GPUs": Case(BLACKWELL, "healthy", "none", 0),
    "a Blackwell link that corrects a few symbols": Case(
        (*BLACKWELL, "gpu.0.link.4.symbol_errors=900+5"), "healthy", "none", 0
    ),
    "a Blackwell link with many symbol errors": Case(
        (*BLACKWELL, "gpu.0.link.4.symbol_errors=0+500000"), "watch", "nvlink_errors", 1
    ),
    "a Blackwell link that recovers": Case(
        (*BLACKWELL, "gpu.0.link.4.recovered=7+1"), "watch", "nvlink_errors", 1
    ),
    "a Blackwell link that fails to recover": Case(
        (*BLACKWELL, "gpu.0.link.4.recovery_failed=0+1"), "watch", "nvlink_errors", 1
    ),
    "a Blackwell link with uncorrected errors": Case(
        (*BLACKWELL, "gpu.0.link.9.effective_errors=3+2"), "watch", "nvlink_errors", 1
    ),
    "Blackwell errors since boot that do not grow": Case(
        (*BLACKWELL, "gpu.*.link.*.recovered=2", "gpu.*.link.*.effective_errors=9"), "healthy", "none", 0
    ),
    "Blackwell links without bit errors": Case(
        (*BLACKWELL, "gpu.*.link.*.effective_ber=4094"), "healthy", "none", 0  # 15e-254: none was seen
    ),
    "a Blackwell link with a high bit error rate": Case(
        (*BLACKWELL, "gpu.0.link.9.effective_ber=0x30B"), "watch", "nvlink_errors", 1  # 3e-11
    ),
    "a Blackwell link that is down": Case(
        (*BLACKWELL, "gpu.0.link.7.active=0"), "fall_back", "nvlink_partial", 1
    ),
    "no spare rows left": Case(("gpu.0.no_spares=2",), "watch", "row_remap_pending", 1),
    "few spare rows left": Case(("gpu.0.few_spares=2",), "healthy", "none", 0),
    "a repair that waits": Case(("gpu.0.channel_repair=1",), "watch", "row_remap_pending", 1),
    "a TPC repair that waits": Case(("gpu.0.tpc_repair=1",), "watch", "row_remap_pending", 1),
    "SRAM errors above the threshold": Case(
        ("gpu.0.sram_exceeded=1", "gpu.0.sram_uncorrected=3"), "watch", "ecc_uncorrected", 1
    ),
    "a driver without SRAM, repair and spare rows": Case(
        (), "healthy", "none", 0,
        absent=(
            "nvmlDeviceGetSramEccErrorStatus",
            "nvmlDeviceGetRepairStatus",
            "nvmlDeviceGetRowRemapperHistogram",
        ),
    ),
    "a busy GPU whose clock stays low": Case(
        ("gpus=1", "gpu.0.utilisation=97", "gpu.0.sm_clock=345"), "watch", "throttling", 0, gpus=1
    ),
    "a busy GPU at a set clock": Case(
        ("gpus=1", "gpu.0.utilisation=97", "gpu.0.sm_clock=345", "gpu.0.event_reasons=2"), "healthy", "none", 0, gpus=1
    ),
    "an idle GPU at a low clock": Case(("gpus=1", "gpu.0.sm_clock=345"), "healthy", "none", 0, gpus=1),
    "one straggler of eight": Case(("gpu.*.utilisation=97", "gpu.0.sm_clock=1200"), "watch", "throttling", 1),
    "one GPU of eight at its power limit": Case(
        ("gpu.*.utilisation=97", "gpu.0.sm_clock=1200", "gpu.0.event_reasons=4"), "watch", "throttling", 1
    ),
    "all eight at their power limit": Case(
        ("gpu.*.utilisation=97", "gpu.*.sm_clock=1300", "gpu.*.event_reasons=4"), "healthy", "none", 0
    ),
    "one idle GPU of eight": Case(
        ("gpu.*.utilisation=97", "gpu.0.utilisation=0", "gpu.0.sm_clock=345"), "healthy", "none", 0
    ),
    "a link below its speed": Case(("gpu.0.link_speed=13281",), "watch", "nvlink_errors", 1),
    "P2P over NVLink switched off by a registry key": Case(("p2p.*.*=4",), "fall_back", "pcie_only", 0),
    "a lost GPU": Case(("gpu.3.fail.*=15",), "fall_back", "gpu_lost", 0),
    "a GPU that is lost in the middle of the sweep": Case(
        ("gpu.0.fail.nvmlDeviceGetPowerUsage=15",), "fall_back", "gpu_lost", 1
    ),
    "seven of eight GPUs": Case(("gpus=7",), "fall_back", "gpu_lost", 0),
    "reset required": Case(("gpu.0.fail.*=16",), "fall_back", "gpu_reset_required", 1),
    "recovery action 1": Case(("gpu.0.recovery_action=1",), "fall_back", "gpu_reset_required", 1),
    "recovery action 2": Case(("gpu.0.recovery_action=2",), "fall_back", "gpu_reset_required", 1),
    "recovery action 3": Case(("gpu.0.recovery_action=3",), "fall_back", "nvlink_loss", 1),
    "recovery action 5": Case(("gpu.0.recovery_action=5",), "watch", "nvlink_errors", 1),
    "pending row remap": Case(("gpu.0.remap_pending=1",), "watch", "row_remap_pending", 1),
    "failed row remap": Case(("gpu.0.remap_failure=1",), "fall_back", "row_remap_failed", 1),
    "uncorrected ECC": Case(("gpu.0.ecc_uncorrected=1",), "fall_back", "ecc_uncorrected", 1),
    "many corrected ECC errors": Case(("gpu.0.ecc_corrected=10+500",), "watch", "ecc_uncorrected", 1),
    "throttling by heat": Case(("gpu.0.event_reasons=0x40",), "watch", "thermal", 1),
    "near the slowdown temperature": Case(("gpu.0.temperature=90",), "watch", "thermal", 1),
    "power brake": Case(("gpu.0.event_reasons=0x80",), "watch", "throttling", 1),
    "MIG on one GPU, whose links then read down": Case(
        ("gpu.0.mig=1", "gpu.0.link.*.active=0"), "healthy", "none", 1
    ),
    "fewer lanes": Case(("gpu.0.pcie_width=8",), "watch", "pcie_degraded", 1),
    "a lower generation under load": Case(
        ("gpu.0.pcie_generation=1", "gpu.0.utilisation=95"), "watch", "pcie_degraded", 1
    ),
    "a fabric that is not started": Case(("gpu.*.fabric_state=1",), "watch", "fabric_manager_down", 0),
    "a fabric route that is unhealthy": Case(("gpu.0.fabric_mask=0x19A",), "fall_back", "nvlink_loss", 1),
    "a driver without row remapping": Case(
        (), "unknown", "unknown", 0, absent=("nvmlDeviceGetRemappedRows",)
    ),
    "a driver without link states": Case((), "unknown", "unknown", 0, absent=("nvmlDeviceGetNvLinkState",)),
    "a driver without P2P status": Case((), "unknown", "unknown", 0, absent=("nvmlDeviceGetP2PStatus",)),
    "a driver without event reasons": Case(
        (), "watch", "unknown", 0, absent=("nvmlDeviceGetCurrentClocksEventReasons",)
    ),
    "ECC not supported": Case(("gpu.*.fail.nvmlDeviceGetTotalEccErrors=3",), "unknown", "unknown", 0),
    "recovery action not supported": Case(("gpu.*.recovery_unsupported=1",), "unknown", "unknown", 0),
    "utilisation not supported": Case(("gpu.*.fail.nvmlDeviceGetUtilizationRates=3",), "healthy", "none", 0),
    "a GPU whose compute mode is Prohibited": Case(("gpu.0.compute_mode=2",), "watch", "environment", 1),
    "a driver that was upgraded under the running tier": Case(
        ("fail.nvmlInitWithFlags=18",), "unknown", "unknown", None
    ),
    "GPUs of two models, each with all its links": Case(
        ("gpu.0.name=NVIDIA H200",), "healthy", "none", 0
    ),
    "all GPUs partitioned by MIG": Case(
        ("gpu.*.mig=1", "gpu.*.link.*.active=0"), "healthy", "none", None
    ),
    "driver not loaded": Case(("fail.nvmlInitWithFlags=9",), "unknown", "unknown", None),
    "a driver that shows no GPU": Case(("gpus=0",), "fall_back", "gpu_lost", None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_this_driver_state_yields_this_verdict_cause_and_fallback_gpu(
    case: Case, fake_nvml: Install, tmp_path: Path
) -> None:
    fake_nvml(*("gpus=8", *case.lines)[::-1], absent=case.absent)  # the first line with a key wins
    _, verdict = triage_of(tmp_path, gpus=case.gpus)
    assert (verdict.verdict, verdict.cause) == (case.verdict, case.cause), verdict.findings
    chosen = verdict.fallback_gpu.index if verdict.fallback_gpu else None
    assert chosen == case.fallback
    if verdict.fallback_gpu is not None:
        assert verdict.fallback_gpu.uuid == f"GPU-{chosen:08d}-0000-4000-8000-000000000000"
        assert verdict.fallback_gpu.reason


def test_missing_links_of_two_gpus_are_grouped_by_their_common_switch(
    fake_nvml: Install, tmp_path: Path
) -> None:
    fake_nvml("gpus=8", "gpu.0.link.7.active=0", "gpu.3.link.3.active=0", "gpu.5.link.0.active=0")
    _, verdict = triage_of(tmp_path)
    shared = [finding for finding in verdict.findings if finding.id == "nvlink.shared_end"]
    assert len(shared) == 1
    assert shared[0].evidence == {"remote": "0000:08:00", "gpus": [0, 3], "links": {"0": [7], "3": [3]}}
    assert "switch" in verdict.summary


def test_a_call_that_never_returns_is_named_and_the_other_gpus_are_still_read(
    fake_nvml: Install, tmp_path: Path
) -> None:
    fake_nvml("gpus=8", "gpu.0.sleep.nvmlDeviceGetPowerUsage=1")
    began = time.monotonic()
    snapshot, verdict = triage_of(tmp_path)
    assert time.monotonic() - began < 6
    assert snapshot.nvml is not None
    assert (snapshot.nvml.hung_call, snapshot.nvml.hung_gpu) == ("nvmlDeviceGetPowerUsage", 0)
    assert [gpu.index for gpu in snapshot.nvml.gpus] == list(range(1, 8))
    assert (verdict.verdict, verdict.cause) == ("unknown", "driver_hang")
    assert verdict.fallback_gpu is not None and verdict.fallback_gpu.index == 1


def test_a_call_that_hangs_at_the_end_of_the_window_keeps_the_first_readings(
    fake_nvml: Install, tmp_path: Path
) -> None:
    fake_nvml("gpus=2", "gpu.1.sleep.nvmlDeviceGetPowerUsage=2", "gpu.1.link.3.active=0")
    snapshot, verdict = triage_of(tmp_path, gpus=2)
    assert snapshot.nvml is not None and snapshot.nvml.hung_gpu == 1
    assert [gpu.index for gpu in snapshot.nvml.gpus] == [0, 1]
    assert {finding.id for finding in verdict.findings} >= {"gpu.driver_hang", "nvlink.partial"}
    assert verdict.fallback_gpu is not None and verdict.fallback_gpu.index == 0


def test_an_init_that_never_returns_is_a_finding_within_its_deadline(fake_nvml: Install) -> None:
    fake_nvml("gpus=8", "sleep.nvmlInitWithFlags=1")
    began = time.monotonic()
    reading = asyncio.run(collect_nvml(expect_gpus=8, window_s=0.2, stall_s=0.4))
    assert reading.hung_call == "nvmlInit" and time.monotonic() - began < 3


def test_processes_that_the_driver_does_not_let_go_are_counted_named_and_bounded(
    fake_nvml: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in a driver's kernel function cannot be made here: what /proc would say of them is."""
    stuck: dict[int, ProcessRow] = {}
    child = ["python", "-m", nvml.CHILD, "--window-s", "3"]
    monkeypatch.setattr(wedged, "process_table", lambda: stuck)
    monkeypatch.setattr(wedged, "read_command", lambda pid: child if pid < 900 else ["vim"])
    monkeypatch.setattr(
        wedged,
        "read_file",
        lambda pid, _: b"SigPnd:\t0000000000000000\nShdPnd:\t%016x\n" % (0 if pid == 803 else 0x100),
    )

    def add(*pids: int) -> None:
        stuck.update({pid: ProcessRow(pid, 1, pid, pid, "python", "D", 0, 0) for pid in pids})

    fake_nvml("gpus=3", "gpu.*.sleep.nvmlDeviceGetPowerUsage=1")
    add(801, 802, 803, 901)  # 803 was not killed, 901 is not ours
    snapshot, verdict = triage_of(tmp_path, gpus=3)
    assert snapshot.nvml is not None and snapshot.nvml.wedged == (801, 802)
    assert "2 processes that read the driver were killed and do not end" in verdict.summary
    add(804, 805)
    began = time.monotonic()
    snapshot, verdict = triage_of(tmp_path, gpus=3)
    assert snapshot.nvml is not None and not snapshot.nvml.gpus, "none was started"
    assert time.monotonic() - began < 1.5
    assert (verdict.verdict, verdict.cause) == ("unknown", "driver_hang")
    assert "4 processes" in verdict.summary and "pid 801, 802, 804, 805" in verdict.summary
    assert "no further one is started" in asyncio.run(read_gpus()).error


def test_a_driver_that_answers_each_call_slowly_is_unread_and_does_not_hang(
    fake_nvml: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "START_ALLOWANCE_S", 0.6)
    fake_nvml("gpus=8", "latency_us=20000")
    reading = asyncio.run(collect_nvml(expect_gpus=8, window_s=0.2, stall_s=0.6))
    assert (reading.unfinished, reading.hung_call) == (True, None) and len(reading.gpus) < 8
    verdict = judge(make.healthy(nvml=reading))
    assert (verdict.verdict, verdict.cause) == ("unknown", "unknown")


def test_a_host_without_gpus_is_skipped_and_gets_no_unknown_finding(tmp_path: Path) -> None:
    snapshot, verdict = triage_of(tmp_path, gpus=0)
    assert snapshot.collectors["nvml"].status == "skipped"
    assert not [finding for finding in verdict.findings if finding.severity is Severity.UNKNOWN]


def test_no_library_on_a_host_that_should_have_gpus_is_unknown_not_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    _, verdict = triage_of(tmp_path, gpus=8)
    assert verdict.verdict == "unknown"


def test_error_counters_are_read_as_growth_within_the_window(fake_nvml: Install, tmp_path: Path) -> None:
    fake_nvml("gpus=1", "gpu.0.link.4.replay=10+3", "gpu.0.link.5.crc=500")
    snapshot, _ = triage_of(tmp_path, gpus=1)
    assert snapshot.nvml is not None
    links = snapshot.nvml.gpus[0].links
    assert (links[4].delta("replay"), links[5].delta("crc")) == (3, 0)


def test_memory_of_a_gpu_and_its_processes_are_read(fake_nvml: Install, tmp_path: Path) -> None:
    fake_nvml("gpus=2", "gpu.1.process=4242", "gpu.1.process_mib=70000")
    snapshot, _ = triage_of(tmp_path, gpus=2)
    assert snapshot.nvml is not None
    held = snapshot.nvml.gpus[1].processes
    assert [(row.pid, row.memory_mib) for row in held] == [(4242, 70000)]
    assert snapshot.nvml.gpus[0].processes == ()
