"""One rank at work: its device, its shard, and what it does for each command of rank 0.

Rank 0 drives a `Worker` from its model thread; the other ranks are processes that follow.
"""

import socket

import torch
from torch import Tensor

from demo.engine.communicator import Communicator
from demo.engine.model import Transformer
from demo.engine.options import Options
from demo.engine.request import Command, Sleep, StartProfile, StepPlan, Stop, StopProfile, WakeUp
from demo.engine.startup import StartError, timed_phase
from demo.engine.step_profiler import StepProfiler


def pick_device(options: Options, rank: int) -> tuple[torch.device, torch.dtype]:
    """Return a rank's device (its own GPU among those of CUDA_VISIBLE_DEVICES, or the CPU) and number type.

    Raises StartError when there are fewer GPUs than ranks.
    """
    kind = options.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count < options.tensor_parallel_size:
            raise StartError(
                f"{options.tensor_parallel_size} rank(s) need a GPU each, but torch sees {count}: widen "
                "CUDA_VISIBLE_DEVICES, lower --tensor-parallel-size, or pass --device cpu"
            )
        torch.cuda.set_device(rank)
        # cuDNN attention takes about 55 ms for each KV length that it meets for the first time (bfloat16 on Hopper), so
        # every early token would look slow; the flash and memory-efficient kernels have no such cost.
        torch.backends.cuda.enable_cudnn_sdp(False)
    name = options.dtype
    if name == "auto":
        name = "bfloat16" if kind == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return torch.device(kind, rank if kind == "cuda" else None), dtype


class Worker:
    """One rank of the engine."""

    def __init__(self, options: Options, *, rank: int) -> None:
        torch.set_num_threads(options.threads)
        self.rank = rank
        self._options = options
        self.device, self._dtype = pick_device(options, rank)
        self.communicator = Communicator(options, rank)
        self.profiler = StepProfiler(options.profiler_dir, rank=rank, on_gpu=self.device.type == "cuda")
        self.all_traces_written = False

    def load(self) -> None:
        """Draw the weights and allocate the cache on the device."""
        with timed_phase("weights"), torch.inference_mode():
            self.model = Transformer(self._options, self.communicator, self.device, self._dtype)

    def connect(self, *, port: int, listener: socket.socket | None) -> None:
        """Meet the other ranks."""
        with timed_phase("distributed init"):
            self.communicator.connect(self.device, port=port, listener=listener)

    def execute(self, command: Command) -> Tensor | None:
        """Do one command; all ranks execute the same ones in the same order. Return rank 0's logits of a step."""
        match command:
            case StartProfile():
                self.profiler.start(command)
            case StopProfile():
                self._stop_profile()
            case Sleep():
                with timed_phase("sleep"), torch.inference_mode():
                    self.model.sleep()
            case WakeUp():
                with timed_phase("wake-up"), torch.inference_mode():
                    self.model.wake_up()
            case StepPlan():
                self.communicator.drills.start_clock()
                with torch.inference_mode():
                    logits = self.model.forward(command)
                if self.profiler.count_step():
                    self._stop_profile()
                return logits
        return None

    def follow_rank_0(self) -> None:
        """Execute what rank 0 sends until it sends Stop."""
        while not isinstance(command := self.communicator.receive(), Stop):
            self.execute(command)

    def _stop_profile(self) -> None:
        self.all_traces_written = self.communicator.all_agree(self.profiler.stop())
