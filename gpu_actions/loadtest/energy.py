"""GPU energy over the measured part, through NVML, from a thread that cannot delay the load or the exit.

The driver's energy counter is used where it exists (Volta and later), else power samples are integrated. A host without
NVML has null figures with the reason.
"""

import bisect
import itertools
import threading
import time
from typing import Any

from gpu_actions.loadtest.result import Energy, GpuFacts

SAMPLE_EVERY_S = 0.5
JOULES_PER_KWH = 3.6e6


class EnergyMeter:
    """Samples power on a daemon thread. A driver that hangs (a lost GPU) leaves figures missing, not the run stuck."""

    def __init__(self, uuids: tuple[str, ...] = ()) -> None:
        self.gpus: tuple[GpuFacts, ...] = ()
        self.driver: str | None = None
        self.missing: str | None = None
        self.samples: list[tuple[float, float]] = []  # monotonic seconds, watts of all GPUs together
        self._counters: list[tuple[float, float]] = []  # monotonic seconds, joules of all GPUs together
        self._wanted = uuids
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="energy", daemon=True)

    def start(self, *, wait_s: float = 3.0) -> None:
        """Start sampling. Wait at most `wait_s` for the first answer of the driver."""
        self._thread.start()
        if not self._ready.wait(wait_s):
            self.missing = f"the NVIDIA driver did not answer in {wait_s:g} s"

    def stop(self) -> None:
        """Stop sampling. Does not wait for a driver that hangs."""
        self._stop.set()
        self._thread.join(timeout=2)

    def _work(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
        except ImportError:
            self.missing = "nvidia-ml-py is not installed"
        except Exception as error:  # noqa: BLE001  (NVMLError, which exists only where the import worked)
            self.missing = f"no NVIDIA driver here ({error})"
        else:
            try:
                self._sample_until_stopped(pynvml)
            except pynvml.NVMLError as error:
                self.missing = f"NVML failed: {error}"
            finally:
                pynvml.nvmlShutdown()
        finally:
            self._ready.set()

    def _sample_until_stopped(self, pynvml: Any) -> None:
        handles = self._find(pynvml)
        if not handles:
            self.missing = self.missing or "this host has no NVIDIA GPU"
            return
        stopped = False
        while not stopped:
            self._sample(pynvml, handles)
            self._ready.set()
            stopped = self._stop.wait(SAMPLE_EVERY_S)
        self._sample(pynvml, handles)

    def _find(self, pynvml: Any) -> list[Any]:
        handles, facts = [], []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
            if self._wanted and uuid not in self._wanted:
                continue
            name, memory = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
            facts.append(GpuFacts(uuid=uuid, name=_text(name), memory_mib=int(memory.total) // 2**20))
            handles.append(handle)
        self.gpus = tuple(facts)
        self.driver = _text(pynvml.nvmlSystemGetDriverVersion())
        if self._wanted and len(handles) < len(self._wanted):
            self.missing = f"{len(self._wanted) - len(handles)} of the GPUs named are not on this host"
            return []
        return handles

    def _sample(self, pynvml: Any, handles: list[Any]) -> None:
        watts = sum(pynvml.nvmlDeviceGetPowerUsage(handle) for handle in handles) / 1000
        now = time.monotonic()
        self.samples.append((now, watts))
        try:
            joules = sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1000
        except pynvml.NVMLError_NotSupported:
            return
        self._counters.append((now, joules))

    def over(self, begin: float, end: float, *, output_tokens: int, price_usd_per_kwh: float) -> Energy:
        """Return the energy between two monotonic times, and per output token made in between."""
        inside = [watts for at, watts in self.samples if begin <= at <= end]
        counters = self._counters if len(self._counters) == len(self.samples) else []
        joules = _difference(counters, begin, end) if counters else _integral(self.samples, begin, end)
        if self.missing is not None or joules is None or not inside:
            missing = self.missing or "too few power samples in the measured part"
            return Energy(missing=missing, price_usd_per_kwh=price_usd_per_kwh)
        per_token = joules / output_tokens if output_tokens else None
        usd_per_joule = price_usd_per_kwh / JOULES_PER_KWH
        return Energy(
            joules=joules,
            mean_watts=joules / (end - begin),
            max_watts=max(inside),
            gpus=len(self.gpus),
            method="energy counter" if counters else "integrated power samples",
            joules_per_output_token=per_token,
            tokens_per_joule=output_tokens / joules if joules > 0 else None,
            usd_per_million_output_tokens=None if per_token is None else per_token * 1e6 * usd_per_joule,
            price_usd_per_kwh=price_usd_per_kwh,
        )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _interpolate(points: list[tuple[float, float]], at: float) -> float | None:
    """Return the value at a time between two samples, by a straight line; just outside of them, the nearest sample's."""
    if not points:
        return None
    after = bisect.bisect_right(points, at, key=lambda point: point[0])
    if after in (0, len(points)):
        nearest = points[0 if after == 0 else -1]
        return nearest[1] if abs(nearest[0] - at) <= 2 * SAMPLE_EVERY_S else None
    (left_at, left), (right_at, right) = points[after - 1], points[after]
    return left + (at - left_at) / (right_at - left_at) * (right - left)


def _difference(counters: list[tuple[float, float]], begin: float, end: float) -> float | None:
    first, last = _interpolate(counters, begin), _interpolate(counters, end)
    return None if first is None or last is None else last - first


def _integral(samples: list[tuple[float, float]], begin: float, end: float) -> float | None:
    first, last = _interpolate(samples, begin), _interpolate(samples, end)
    if first is None or last is None:
        return None
    points = [(begin, first), *((at, watts) for at, watts in samples if begin < at < end), (end, last)]
    return sum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in itertools.pairwise(points))
