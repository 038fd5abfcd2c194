"""One rank at work: its device, its shard, and the loop that does what rank 0 broadcasts.

Rank 0 drives a `Worker` from its model thread; the other ranks are processes of their own that `follow`.
"""

import logging
import socket
import time
from collections.abc import Callable

import torch
from torch import Tensor

from demo.engine import weights
from demo.engine.model import Transformer
from demo.engine.options import Options, StartError
from demo.engine.step_plan import Operation, StepPlan
from demo.engine.step_profiler import StepProfiler
from demo.engine.tensor_parallel import Communicator

log = logging.getLogger(__name__)


class DeviceError(StartError):
    """The device that was asked for is not there. The message says what is."""


def pick_device(options: Options, rank: int) -> tuple[torch.device, torch.dtype]:
    """Give a rank's device (its own GPU among those of CUDA_VISIBLE_DEVICES, or the CPU) and number type.

    Raises DeviceError when there are fewer GPUs than ranks.
    """
    kind = options.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count < options.tensor_parallel_size:
            raise DeviceError(
                f"{options.tensor_parallel_size} rank(s) need a GPU each, but torch sees {count}: widen "
                "CUDA_VISIBLE_DEVICES, lower --tensor-parallel-size, or give --device cpu"
            )
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    name = options.dtype
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return device, dtype


class Worker:
    """One rank. `phase(name, seconds)` is told how long each part of the start-up took."""

    def __init__(self, options: Options, *, rank: int, phase: Callable[[str, float], None]) -> None:
        torch.set_num_threads(options.threads)
        self.rank = rank
        self._options = options
        self._phase = phase
        self.device, self.dtype = pick_device(options, rank)
        self.communicator = Communicator(options, rank=rank, device=self.device)
        self.profiler = StepProfiler(options.profiler_dir, rank=rank, on_gpu=self.device.type == "cuda")
        self.finished_profiles: list[tuple[int, bool]] = []
        self._stamp_ms = 0

    def load(self) -> None:
        """Bring the shard and the cache onto the device. Raises WeightsError or CacheError."""
        began = time.monotonic()
        with torch.inference_mode():
            shard = weights.load_shard(self._options, rank=self.rank, device=self.device, dtype=self.dtype)
            self.model = Transformer(self._options, shard, self.communicator)
        self._phase("weights", time.monotonic() - began)

    def connect(self, *, port: int, listener: socket.socket | None) -> None:
        """Meet the other ranks."""
        began = time.monotonic()
        self.communicator.connect(port=port, listener=listener)
        self._phase("distributed init", time.monotonic() - began)

    def execute(self, plan: StepPlan) -> Tensor | None:
        """Do one plan; gives rank 0's logits of a step. Called in the same order with the same plans on all ranks."""
        if plan.operation is Operation.START_PROFILE:
            self._stamp_ms = plan.stamp
            self.profiler.start(max_iterations=plan.value, stamp_ms=plan.stamp)
            return None
        if plan.operation is Operation.STOP_PROFILE:
            self._stop_profile()
            return None
        self.communicator.begin_serving()
        with torch.inference_mode():
            logits = self.model.forward(plan)
        if self.profiler.count_step():
            self._stop_profile()
        return logits

    def follow(self) -> None:
        """Other ranks: do what rank 0 says until it says stop."""
        while (plan := self.communicator.receive()).operation is not Operation.STOP:
            self.execute(plan)

    def _stop_profile(self) -> None:
        written = self.communicator.all_agree(self.profiler.stop())
        self.finished_profiles.append((self._stamp_ms, written))
        del self.finished_profiles[:-1]
