"""GPUs whose memory fails, that are hot, slow or used by others, and drivers that list less than there is."""

from collections.abc import Callable
from typing import Any

from gpu_actions.snapshot.collectors.nvml import GpuProcess, GpuSample, NvmlReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.triage.baselines import baseline_from
from tests.gpu_actions.triage import builders as make

Case = tuple[Callable[[], Snapshot], str, str]
BASE = make.gpu(3).first
KNOWN = {"baseline": baseline_from(make.healthy())}
GIB = 1024
RANK = GpuProcess(pid=203, memory_mib=70 * GIB, sm_percent=60, name="python3")


def one(verdict: str, cause: str, **changes: Any) -> Case:
    """Return the case of a host whose GPU 3 differs."""
    return lambda: make.healthy(nvml=make.with_gpu(3, **changes)), verdict, cause


def sampled(first: dict[str, Any], last: dict[str, Any] | None, **changes: Any) -> NvmlReading:
    """Return GPUs of which the samples of GPU 3 differ; without a last one the driver answered only once."""
    both = {
        "first": BASE.model_copy(update=first),
        "last": None if last is None else BASE.model_copy(update=last),
    }
    return make.with_gpu(3, **both, **changes)


def seen(
    verdict: str, cause: str, first: dict[str, Any], last: dict[str, Any] | None, **changes: Any
) -> Case:
    """Return the case of a host on which the samples of GPU 3 differ."""
    return lambda: make.healthy(nvml=sampled(first, last, **changes)), verdict, cause


def always(verdict: str, cause: str, changes: dict[str, Any], **gpu: Any) -> Case:
    """Return the case of a host on which both samples of GPU 3 differ."""
    return seen(verdict, cause, changes, changes, **gpu)


def listed(verdict: str, cause: str, expected: int | None = 8, count: int = 8, **changes: Any) -> Case:
    """Return the case of a host whose driver lists this."""
    return lambda: make.healthy(nvml=make.nvml(count, **changes), expected={"gpus": expected}), verdict, cause


def less(count: int, **changes: Any) -> Snapshot:
    """Return a host whose driver counts eight GPUs and lists so many."""
    return make.healthy(nvml=make.nvml(count).model_copy(update={"count": 8, **changes}))


def clocked(*clocks: int | None, busy: int = 100, **changes: Any) -> NvmlReading:
    """Return busy GPUs with these clocks; `g3={...}` changes one, its two samples by `first` and `last`."""
    gpus = []
    for index, clock in enumerate(clocks):
        more = dict(changes.get(f"g{index}", {}))
        sample = GpuSample(
            event_reasons=0, temperature_c=60, power_w=500, sm_clock_mhz=clock, utilisation_percent=busy
        )
        first = sample.model_copy(update=more.pop("first", {}))
        last = sample.model_copy(update=more.pop("last", {}))
        gpus.append(make.gpu(index, first=first, last=last, max_sm_clock_mhz=1980).model_copy(update=more))
    return make.nvml(len(clocks)).model_copy(update={"gpus": tuple(gpus)})


def speed(verdict: str, cause: str, *clocks: int | None, **changes: Any) -> Case:
    """Return the case of a host whose busy GPUs run at these clocks."""
    number = len(clocks)
    return (
        lambda: make.healthy(
            nvml=clocked(*clocks, **changes),
            ranks=make.ranks(number),
            ras=make.ras([9] * number, [12] * number),
            expected={"gpus": number, "ranks": number},
        ),
        verdict,
        cause,
    )


def heat(reasons: int) -> dict[str, Any]:
    """Return the changes of a GPU that heat slows down."""
    sample = {"event_reasons": reasons, "temperature_c": 88}
    return {"first": sample, "last": sample}


def stopped(*processes: GpuProcess) -> Callable[[], Snapshot]:
    """Return a host whose tier is stopped on purpose, and what NVML lists on GPU 3."""
    return lambda: make.healthy(
        nvml=make.with_gpu(3, processes=processes), expected={"tier_expected": False, "other_pids": (7,)}
    )


def beside(*others: GpuProcess) -> Callable[[], Snapshot]:
    """Return a host with a rank and others on GPU 3."""
    return lambda: make.healthy(nvml=make.with_gpu(3, processes=(RANK, *others)))


def train(pid: int, **changes: Any) -> GpuProcess:
    return GpuProcess(pid=pid, memory_mib=4 * GIB, name="train.py").model_copy(update=changes)


SEVEN = [1980] * 7
CASES: dict[str, tuple[Any, ...]] = {
    **{
        f"a GPU whose driver asks for {words}": one(verdict, cause, recovery_action=action)
        for action, words, verdict, cause in (
            (1, "a reset", "fall_back", "gpu_reset_required"),
            (2, "a reboot of the node", "fall_back", "gpu_reset_required"),
            (3, "its P2P traffic to be drained", "fall_back", "nvlink_loss"),
            (4, "a drain and a reset", "fall_back", "gpu_reset_required"),
            (5, "the recovery of the IMEX domain", "watch", "nvlink_errors"),
            (8, "something that is not known yet", "fall_back", "gpu_reset_required"),
        )
    },
    "a GPU that failed to remap a row, and has no spare rows": one(
        "fall_back", "row_remap_failed", remapped_failure=True, banks_without_spare_rows=3
    ),
    "a GPU with a pending row remap": one("watch", "row_remap_pending", remapped_pending=True),
    "a GPU of which one bank has no spare row": one("watch", "row_remap_pending", banks_without_spare_rows=1),
    "a GPU of which two banks have no spare row": one("watch", "row_remap_pending", banks_without_spare_rows=2),
    "a GPU with a pending repair": one("watch", "row_remap_pending", repair_pending=True),
    "a GPU with too many SRAM errors": one(
        "watch", "ecc_uncorrected", sram_threshold_exceeded=True, sram_uncorrected=12
    ),
    "a GPU that gets an uncorrected ECC error": seen(
        "fall_back", "ecc_uncorrected", {"ecc_uncorrected": 1}, {"ecc_uncorrected": 3}
    ),
    "a GPU that gets its first uncorrected ECC error": seen(
        "fall_back", "ecc_uncorrected", {"ecc_uncorrected": 0}, {"ecc_uncorrected": 1}
    ),
    "a GPU whose links and recovery action cannot be read": one(
        "unknown", "unknown", unread={"links": "not_supported", "recovery_action": "unknown"}
    ),
    "a GPU with one uncorrected ECC error of an hour ago": always(
        "fall_back", "ecc_uncorrected", {"ecc_uncorrected": 1}
    ),
    "a GPU whose uncorrected ECC errors were read only once": seen(
        "fall_back", "ecc_uncorrected", {"ecc_uncorrected": None}, {"ecc_uncorrected": 2}
    ),
    "a GPU whose driver was loaded again within the window, with an uncorrected ECC error since": seen(
        "fall_back", "ecc_uncorrected", {"ecc_uncorrected": 4}, {"ecc_uncorrected": 1}
    ),
    "a GPU that corrects 100 ECC errors within the window": seen(
        "watch", "ecc_uncorrected", {"ecc_corrected": 7}, {"ecc_corrected": 107}
    ),
    "a GPU that corrects 99 ECC errors within the window": seen(
        "healthy", "none", {"ecc_corrected": 7}, {"ecc_corrected": 106}
    ),
    "a GPU with many corrected ECC errors, read only once": seen(
        "healthy", "none", {"ecc_corrected": None}, {"ecc_corrected": 9000}
    ),
    "a GPU whose corrected ECC errors cannot be read any more": seen(
        "healthy", "none", {"ecc_corrected": 9000}, {"ecc_corrected": None}
    ),
    "a GPU that must be reset before it can be read": one(
        "fall_back", "gpu_reset_required", error="reset_required", uuid="GPU-3"
    ),
    "a GPU that is not found": one("fall_back", "gpu_lost", error="gpu_not_found"),
    "a GPU that cannot be read": one("unknown", "unknown", error="unknown"),
    "a GPU that is partitioned": one("healthy", "none", mig=True),
    # what the driver lists
    "a driver that hangs before it lists a GPU": (
        lambda: make.healthy(nvml=NvmlReading(hung_call="nvmlInit_v2", wedged=(4711,))), "unknown", "driver_hang",
    ),
    "a driver that hangs on one GPU, for the second time": (
        lambda: less(7, hung_call="nvmlDeviceGetPowerUsage", hung_gpu=7, wedged=(4711, 4712)),
        "unknown", "driver_hang",
    ),
    "a driver that hangs so often that it is not asked again": (
        lambda: make.healthy(nvml=NvmlReading(hung_call="nvmlInit_v2", wedged=(11, 12, 13, 14))),
        "unknown", "driver_hang",
    ),
    "a driver so slow that it did not even count its GPUs": (
        lambda: make.healthy(nvml=NvmlReading(unfinished=True)), "unknown", "unknown",
    ),
    "a driver that is not loaded": (
        lambda: make.healthy(nvml=NvmlReading(init_error="driver_not_loaded (nvmlInit)")), "unknown", "unknown",
    ),
    "a driver that does not start since a GPU is lost": (
        lambda: make.healthy(nvml=NvmlReading(init_error="gpu_is_lost (nvmlInit)", count=0)),
        "fall_back", "gpu_lost",
    ),
    "a driver that does not tell how many GPUs there are": (
        lambda: make.healthy(nvml=NvmlReading()), "unknown", "unknown",
    ),
    "a driver that lists no GPU on a host of which nothing is known": (
        lambda: make.healthy(nvml=NvmlReading(count=0), expected={"gpus": None}), "unknown", "unknown",
    ),
    "seven GPUs of eight": listed("fall_back", "gpu_lost", count=7),
    "nine GPUs where eight are expected": listed("healthy", "none", count=9),
    "eight GPUs on a host of which nothing is known": listed("healthy", "none", expected=None),
    "eight GPUs, one of which could not be reached": (
        lambda: less(7), "unknown", "unknown",
    ),
    "eight GPUs, two of which could not be reached": (
        lambda: less(6), "unknown", "unknown",
    ),
    "seven GPUs of a baseline's eight, one of which has no UUID": (
        lambda: make.healthy(
            nvml=make.nvml(7, gpus=(*make.nvml(6).gpus, make.gpu(6, uuid="", unread={"uuid": "unknown"}))),
            expected={"gpus": None},
        ), "unknown", "unknown", KNOWN,
    ),
    "six GPUs of a baseline's eight": (
        lambda: make.healthy(nvml=make.nvml(6), expected={"gpus": None}), "fall_back", "gpu_lost", KNOWN,
    ),
    "GPUs of an older generation, without what newer ones report": (
        lambda: make.healthy(nvml=make.nvml(gpus=tuple(
            make.gpu(index, unread={"sram": "not_supported", "links": "not_supported"}) for index in range(8)
        ))), "healthy", "none",
    ),
    "a GPU whose power draw is not supported": one("healthy", "none", unread={"power_w": "not_supported"}),
    "a GPU whose power draw could not be read": one("watch", "unknown", unread={"power_w": "timeout"}),
    "a GPU whose power limit could not be read": one("healthy", "none", unread={"power_limit_w": "timeout"}),
    "a lost GPU beside two whose ECC errors cannot be read": (
        lambda: make.healthy(nvml=make.nvml(gpus=tuple(
            make.gpu(index, **{
                1: {"error": "gpu_is_lost", "unread": {"uuid": "gpu_is_lost"}},
                2: {"unread": {"ecc_uncorrected": "not_supported", "temperature_c": "timeout"}},
                5: {"unread": {"ecc_uncorrected": "not_supported"}},
            }.get(index, {})) for index in range(8)
        ))), "fall_back", "gpu_lost",
    ),
    # heat
    "a GPU at 89 C that slows down at 92": always("watch", "thermal", {"temperature_c": 89}),
    "a GPU at 88 C that slows down at 92": always("healthy", "none", {"temperature_c": 88}),
    "a GPU that was hot a moment ago": seen("healthy", "none", {"temperature_c": 91}, {"temperature_c": 80}),
    "a GPU at 87 C that does not say when it slows down": always(
        "watch", "thermal", {"temperature_c": 87}, slowdown_temperature_c=None
    ),
    "a GPU at 86 C that does not say when it slows down": always(
        "healthy", "none", {"temperature_c": 86}, slowdown_temperature_c=None
    ),
    "a GPU that its software slows down by heat": always(
        "watch", "thermal", {"event_reasons": 0x20, "temperature_c": 85, "sm_clock_mhz": 1200}
    ),
    "a GPU that its hardware slows down by heat": always(
        "watch", "thermal", {"event_reasons": 0x48, "temperature_c": 93, "sm_clock_mhz": 990}
    ),
    "a GPU slowed down by heat whose temperature cannot be read": always(
        "watch", "thermal", {"event_reasons": 0x60, "temperature_c": None}
    ),
    "a GPU whose temperature cannot be read": always("healthy", "none", {"temperature_c": None}),
    "a GPU that was slowed down by heat for a moment": seen(
        "healthy", "none", {"event_reasons": 0x40}, {"event_reasons": 0x1}
    ),
    "a GPU whose reasons for a low clock were read only at the end": seen(
        "healthy", "none", {"event_reasons": None}, {"event_reasons": 0x48}
    ),
    "a GPU whose reasons for a low clock were read only at the start": seen(
        "healthy", "none", {"event_reasons": 0x48}, {"event_reasons": None}
    ),
    "a GPU under a power brake": always("watch", "throttling", {"event_reasons": 0x88, "sm_clock_mhz": 700}),
    "a GPU under a power brake, read only once": seen("watch", "throttling", {"event_reasons": 0x80}, None),
    "a GPU that its hardware slows down": always("watch", "throttling", {"event_reasons": 0x8}),
    # clocks
    "one busy GPU of eight slower than the others": speed("watch", "throttling", *SEVEN, 1600),
    "one busy GPU of eight nearly as fast as the others": speed("healthy", "none", *SEVEN, 1683),
    "one busy GPU of eight capped by its power": speed(
        "watch", "throttling", *SEVEN, 1400, g7={"first": {"event_reasons": 0x4}, "last": {"event_reasons": 0x4}}
    ),
    "one busy GPU of eight that was capped for a moment": speed(
        "watch", "throttling", *SEVEN, 1400, g7={"first": {"event_reasons": 0x4}}
    ),
    "one busy GPU of eight whose reasons were read only once": speed(
        "watch", "throttling", *SEVEN, 1400, g7={"first": {"event_reasons": None}, "last": {"event_reasons": 0x4}}
    ),
    "one busy GPU of eight whose reasons were read only at the start": speed(
        "watch", "throttling", *SEVEN, 1400, g7={"first": {"event_reasons": 0x4}, "last": {"event_reasons": None}}
    ),
    "one busy GPU of eight slowed down by heat": speed(
        "watch", "thermal", *SEVEN, 1200, g7=heat(0x20)
    ),
    "one busy GPU of eight, first in line, slowed down by heat, and the last one slow too": speed(
        "watch", "thermal", 1200, *SEVEN[1:], 1300, g0=heat(0x40)
    ),
    "one busy GPU of eight that waited for a moment": speed(
        "healthy", "none", *SEVEN, 1980, g7={"last": {"sm_clock_mhz": 345}}
    ),
    "one busy GPU of eight whose clock could be read only once": speed(
        "watch", "throttling", *SEVEN, 1400, g7={"first": {"sm_clock_mhz": None}}
    ),
    "one busy GPU of eight whose clock cannot be read": speed("healthy", "none", None, *SEVEN),
    "one GPU of eight that is idle": speed(
        "healthy", "none", *SEVEN, 345, g7={"first": {"utilisation_percent": 0}, "last": {"utilisation_percent": 0}}
    ),
    "one GPU of eight that just went idle": speed(
        "healthy", "none", *SEVEN, 345, g7={"last": {"utilisation_percent": 0}}
    ),
    "one GPU of eight whose utilisation cannot be read": speed(
        "healthy", "none", *SEVEN, 345, g7={"last": {"utilisation_percent": None}}
    ),
    "one GPU of eight at half of its use, and slow": speed("watch", "throttling", *SEVEN, 1200, busy=50),
    "one GPU of eight at less than half of its use, and slow": speed("healthy", "none", *SEVEN, 1200, busy=49),
    "one GPU of eight that is partitioned and slow": speed("healthy", "none", *SEVEN, 345, g7={"mig": True}),
    "one GPU of eight that is of another model and slower": speed(
        "healthy", "none", *SEVEN, 1410, g7={"name": "NVIDIA A100-SXM4-80GB", "max_sm_clock_mhz": 1410}
    ),
    "a lost GPU that was busy before": speed("fall_back", "gpu_lost", *SEVEN, 345, g7={"error": "gpu_is_lost"}),
    "one busy GPU of three slower than the others": speed("watch", "throttling", 1980, 1980, 1500),
    "two busy GPUs, of which one is slower": speed("healthy", "none", 1980, 1500),
    "all GPUs at a very low clock": speed("watch", "throttling", *[1100] * 8),
    "all GPUs just below full speed": speed("healthy", "none", *[1188] * 8),
    "all GPUs at a clock that somebody has set": speed(
        "healthy", "none", *[1100] * 8,
        **{f"g{n}": {"first": {"event_reasons": 0x2}, "last": {"event_reasons": 0x2}} for n in range(8)},
    ),
    "all GPUs at a low clock that do not report their highest": speed(
        "healthy", "none", *[1100] * 8, **{f"g{n}": {"max_sm_clock_mhz": None} for n in range(8)}
    ),
    "one GPU of three with a lower power limit": speed(
        "watch", "throttling", 1980, 1980, 1980,
        g0={"power_limit_w": 700.0}, g1={"power_limit_w": 700.0}, g2={"power_limit_w": 500.0},
    ),
    "one GPU of two with a lower power limit": speed(
        "healthy", "none", 1980, 1980, g0={"power_limit_w": 700.0}, g1={"power_limit_w": 500.0}
    ),
    "one GPU of eight at 85 % of the others' power limit": speed(
        "healthy", "none", *[1980] * 8,
        **{f"g{n}": {"power_limit_w": 595.0 if n == 2 else 700.0} for n in range(8)},
    ),
    # who uses them
    "memory that six processes hold after a stop": (
        stopped(*(train(500 + n, memory_mib=None if n == 5 else 1024) for n in range(6)), train(7)),
        "watch", "memory_held",
    ),
    "memory that twenty processes hold after a stop": (
        stopped(*(train(500 + n) for n in range(20))), "watch", "memory_held",
    ),
    "a stranger whose share and memory cannot be read": (
        beside(GpuProcess(pid=900)), "healthy", "none",
    ),
    "two strangers that together take a fifth of a GPU": (
        beside(train(900, sm_percent=12), train(901, sm_percent=8)), "watch", "gpu_hogged",
    ),
    "two strangers that take less than a fifth of a GPU": (
        beside(train(900, sm_percent=12), train(901, sm_percent=7.5)), "healthy", "none",
    ),
    "four strangers on a GPU": (
        beside(*(train(900 + n, sm_percent=n or None) for n in range(4))), "healthy", "none",
    ),
    "five strangers on a GPU": (
        beside(*(train(900 + n, sm_percent=n or None) for n in range(5))), "healthy", "none",
    ),
    "three strangers on a GPU, beside the fallback tier's process": (
        lambda: make.healthy(
            nvml=make.with_gpu(3, processes=(RANK, *(train(900 + n) for n in range(3)), train(7, sm_percent=50))),
            expected={"other_pids": (7,)},
        ), "healthy", "none",
    ),
    "twenty strangers on a GPU, beside two ranks of which one's share is not known": (
        beside(*(train(900 + n, sm_percent=2) for n in range(20)), GpuProcess(pid=204, memory_mib=900)),
        "watch", "gpu_hogged",
    ),
    "one process on the GPUs, of another pid namespace": (
        lambda: make.healthy(nvml=make.with_gpu(3, processes=(train(900, sm_percent=60),))), "healthy", "none",
    ),
    "processes on the GPUs, of another pid namespace": (
        lambda: make.healthy(nvml=make.with_gpu(3, processes=(train(900), train(901, sm_percent=60)))),
        "healthy", "none",
    ),
    "a stranger on the GPUs of a tier whose processes were not read": (
        lambda: make.skipping(make.healthy(nvml=make.with_gpu(3, processes=(train(900, sm_percent=60),))), "ranks"),
        "healthy", "none",
    ),
}  # fmt: skip
