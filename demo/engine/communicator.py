"""What passes between the ranks of one engine: commands over gloo, activations over NCCL (gloo on a CPU).

Commands have their own process group without a time limit, since an idle engine sends none. Activations keep the limit of
`--collective-timeout-s`, after which the waiting rank fails.
"""

import os
import pickle
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from demo.engine.drills import Drills
from demo.engine.options import Options
from demo.engine.request import Command

NO_LIMIT = timedelta(days=365)

DEFAULT_ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",  # all ranks are on one host, whose name need not resolve
    "NCCL_NVLS_ENABLE": "0",  # NVLink multicast needs a fabric set-up that guests of a virtual machine often lack
}
"""Set where the environment says nothing."""


class Communicator:
    """One rank's side of the collectives. A single rank sends nothing."""

    def __init__(self, options: Options, rank: int) -> None:
        self.rank = rank
        self.world = options.tensor_parallel_size
        self._options = options
        self._control: Any = None
        # One broadcast of a fixed size per command. A second one, with the length, would wait without a time limit for a
        # frozen rank, which must instead run into the time limit of an all-reduce.
        size = 4096 + 128 * options.max_num_seqs + 4 * options.prefill_chunk
        self._buffer = torch.zeros(size, dtype=torch.uint8)
        self.drills = Drills(options, rank)

    def connect(self, device: torch.device, *, port: int, listener: socket.socket | None) -> None:
        """Meet the other ranks. Raises RuntimeError when a rank does not come within the collective timeout.

        Rank 0 passes the socket that it already listens on, so that no other process can take the port in between.
        """
        if self.world == 1:
            return
        for name, value in DEFAULT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        timeout = timedelta(seconds=self._options.collective_timeout_s)
        master = {} if listener is None else {"master_listen_fd": listener.detach()}
        store = dist.TCPStore(
            "127.0.0.1", port, self.world, self.rank == 0, timeout, wait_for_workers=False, **master
        )
        on_gpu = device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.world,
            timeout=timeout,
            device_id=device if on_gpu else None,
        )
        self._control = dist.new_group(backend="gloo", timeout=NO_LIMIT)

    def send(self, command: Command) -> None:
        """Broadcast a command from rank 0."""
        if self.world > 1:
            data = pickle.dumps(command)
            self._buffer[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            dist.broadcast(self._buffer, src=0, group=self._control)

    def receive(self) -> Command:
        """Wait for the next command of rank 0."""
        dist.broadcast(self._buffer, src=0, group=self._control)
        command: Command = pickle.loads(self._buffer.numpy().tobytes())  # noqa: S301  (from rank 0, its parent)
        return command

    def all_reduce(self, values: Tensor) -> None:
        """Sum over the ranks, in place."""
        if self.world > 1:
            self.drills.before_all_reduce(values)
            dist.all_reduce(values)

    def all_agree(self, fine: bool) -> bool:
        """Wait until every rank has called it, and return True if all passed True. Used where ranks write files."""
        if self.world == 1:
            return fine
        flag = torch.tensor(int(fine), dtype=torch.int64)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=self._control)
        return bool(flag.item())
