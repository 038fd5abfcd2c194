"""The ranks of one engine and what passes between them: the step's plan over gloo, activations over NCCL (gloo on a CPU).

Plans go through a process group of their own without a time limit, since an idle engine sends none; activations keep the
limit of `--collective-timeout-s`, PyTorch's 600 s by default, after which the waiting rank ends with an error.
"""

import logging
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from demo.engine.options import Options
from demo.engine.step_plan import StepPlan, decode_plan, encode_plan, wire_size

log = logging.getLogger(__name__)

NO_LIMIT = timedelta(days=365)

DEFAULT_ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",  # all ranks are on one host; a host name that does not resolve must not matter
    "NCCL_NVLS_ENABLE": "0",  # NVLink multicast needs a fabric set-up that guests of a virtual machine often lack
}
"""Set where the environment says nothing."""


class Communicator:
    """One rank's side of the collectives. With one rank nothing is sent and torch.distributed is not touched."""

    def __init__(self, options: Options, *, rank: int, device: torch.device) -> None:
        self.rank = rank
        self.world = options.tensor_parallel_size
        self._control: Any = None
        self._words = torch.zeros(wire_size(options.max_num_seqs, options.prefill_chunk), dtype=torch.int64)
        self._drill_sleep_s = options.drill_sleep_s if options.drill_sleep_rank == rank else 0.0
        self._drill_after_s = options.drill_sleep_after_s
        self._drill_due_s: float | None = None
        self._timeout = timedelta(seconds=options.collective_timeout_s)
        self._device = device

    def connect(self, *, port: int, listener: socket.socket | None) -> None:
        """Meet the other ranks. Rank 0 passes the socket that it already listens on, so the port cannot be lost to another
        process in between. Raises RuntimeError when a rank does not come within the collective timeout."""
        if self.world == 1:
            return
        import torch.distributed as dist

        for name, value in DEFAULT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        store = dist.TCPStore(
            "127.0.0.1",
            port,
            self.world,
            is_master=listener is not None,
            timeout=self._timeout,
            wait_for_workers=False,
            **({} if listener is None else {"master_listen_fd": listener.detach()}),
        )
        on_gpu = self._device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.world,
            timeout=self._timeout,
            **({"device_id": self._device} if on_gpu else {}),
        )
        self._control = dist.new_group(backend="gloo", timeout=NO_LIMIT)

    def send(self, plan: StepPlan) -> None:
        """Rank 0: tell the other ranks what to do."""
        if self.world == 1:
            return
        import torch.distributed as dist

        words = encode_plan(plan)
        self._words[: len(words)] = torch.tensor(words, dtype=torch.int64)
        dist.broadcast(self._words, src=0, group=self._control)

    def receive(self) -> StepPlan:
        """Other ranks: wait for what to do."""
        import torch.distributed as dist

        dist.broadcast(self._words, src=0, group=self._control)
        words: Sequence[int] = self._words.tolist()
        return decode_plan(words)

    def all_reduce(self, values: Tensor) -> None:
        """Sum over the ranks, in place."""
        if self.world == 1:
            return
        self._sleep_if_due()
        import torch.distributed as dist

        dist.all_reduce(values)

    def all_agree(self, fine: bool) -> bool:
        """Say whether every rank is fine; ends when all have said so. Used where ranks write files."""
        if self.world == 1:
            return fine
        import torch.distributed as dist

        flag = torch.tensor(int(fine), dtype=torch.int64)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=self._control)
        return bool(flag.item())

    def begin_serving(self) -> None:
        """Start the clock of the sleeping-rank drill: called at the rank's first step."""
        if self._drill_sleep_s and self._drill_due_s is None:
            self._drill_due_s = time.monotonic() + self._drill_after_s

    def _sleep_if_due(self) -> None:
        if self._drill_due_s is None or time.monotonic() < self._drill_due_s or not self._drill_sleep_s:
            return
        sleep_s, self._drill_sleep_s = self._drill_sleep_s, 0.0
        log.warning("drill: rank %d sleeps %g s before its all-reduce", self.rank, sleep_s)
        time.sleep(sleep_s)
        log.warning("drill: rank %d goes on", self.rank)
