"""The ranks of the deep probe: all-reduce, copies between pairs and a GEMM on each GPU, each written as soon as it is measured.

Start-up takes nearly all of the time, so torch is imported once, the ranks are forked before CUDA is initialised, and each rank
measures everything in one context and one communicator. With gloo the same code runs on CPU tensors, for tests.
"""

import argparse
import functools
import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from typing import Any

STARTED = time.monotonic()
GEMM_SIZE = 8192
GEMM_ROUNDS = 10
COPY_MIB = 256
HOST_COPY_REPEATS = 3
COPY_ROUNDS = 8
ALLREDUCE_ROUNDS = 8
COPIES_DONE = "copies_done"
HOST_LINK_DONE = "host_link_done_"
CPU_GEMM_SIZE = 256
CPU_COPY_MIB = 4


def emit(record: dict[str, Any]) -> None:
    """Write one record immediately, so that a later hang does not lose it."""
    os.write(1, json.dumps(record).encode() + b"\n")


class Timer:
    """Time work on a device in seconds per round, after one warm-up round: by CUDA events on a GPU, by the clock on a CPU."""

    def __init__(self, torch: Any, *, gpu: bool) -> None:
        self.torch = torch
        self.gpu = gpu

    def seconds(self, work: Any, rounds: int, *, device: int = 0) -> float:
        """Return the seconds per round; `device` is the GPU whose stream runs `work`."""
        if not self.gpu:
            work()
            began = time.perf_counter()
            for _ in range(rounds):
                work()
            return (time.perf_counter() - began) / rounds
        with self.torch.cuda.device(device):
            work()
            self.torch.cuda.synchronize()
            first, last = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            for _ in range(rounds):
                work()
            last.record()
            last.synchronize()
            milliseconds: float = first.elapsed_time(last)
        return milliseconds / 1000 / rounds


def gemm_tflops(torch: Any, device: Any, rank: int, timer: Timer) -> float:
    """Measure a square bf16 matrix product on a GPU (small and fp32 on a CPU). Return TFLOP/s."""
    size = GEMM_SIZE if timer.gpu else CPU_GEMM_SIZE
    kind = torch.bfloat16 if timer.gpu else torch.float32
    left = torch.randn(size, size, device=device, dtype=kind)
    right = torch.randn(size, size, device=device, dtype=kind)
    out = torch.empty_like(left)
    seconds = timer.seconds(lambda: torch.matmul(left, right, out=out), GEMM_ROUNDS, device=rank)
    rate: float = 2 * size**3 / seconds / 1e12
    return rate


def memory_gbps(torch: Any, device: Any, rank: int, timer: Timer) -> float:
    """Measure copies within a GPU's memory: bytes read plus written, in GB/s."""
    one = torch.zeros((COPY_MIB if timer.gpu else CPU_COPY_MIB) * 2**20, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    seconds = timer.seconds(lambda: other.copy_(one, non_blocking=True), COPY_ROUNDS, device=rank)
    rate: float = round(2 * one.numel() / seconds / 1e9, 2)
    return rate


class HostLink:
    """Copies between pinned host memory and a GPU (between two CPU tensors without one)."""

    def __init__(self, torch: Any, device: Any, rank: int, timer: Timer) -> None:
        self.size = (COPY_MIB if timer.gpu else CPU_COPY_MIB) * 2**20
        self.there = torch.zeros(self.size, dtype=torch.uint8, device=device)
        self.host = torch.empty(self.size, dtype=torch.uint8, pin_memory=timer.gpu)
        self.rank, self.timer = rank, timer

    def gbps(self, *, repeats: int) -> dict[str, float]:
        """Measure both directions in GB/s. The best of the repeats counts: a link at rest needs a moment."""
        found = {}
        for name, sink, source in (("to_gpu", self.there, self.host), ("from_gpu", self.host, self.there)):
            copy = functools.partial(sink.copy_, source, non_blocking=True)
            seconds = min(self.timer.seconds(copy, COPY_ROUNDS, device=self.rank) for _ in range(repeats))
            found[f"{name}_gbps"] = round(self.size / seconds / 1e9, 2)
        return found


def is_copy(torch: Any, one: Any, other: Any) -> bool:
    """Return True if two tensors on different GPUs hold the same bytes: by a sum over all and by samples."""
    sums = [int(tensor.view(torch.int64).sum().cpu()) for tensor in (one, other)]
    return sums[0] == sums[1] and torch.equal(one[::4097].cpu(), other[::4097].cpu())


def copies_from(
    torch: Any, source: int, world_size: int, timer: Timer, *, spoil: tuple[int, int] | None
) -> list[dict[str, Any]]:
    """Measure copies from one GPU to every other, and compare all the data. `spoil` corrupts one copy, for tests."""
    size = (COPY_MIB if timer.gpu else CPU_COPY_MIB) * 2**20
    here = torch.device("cuda", source) if timer.gpu else torch.device("cpu")
    sent = torch.randint(0, 256, (size,), dtype=torch.uint8, device=here)
    pairs = []
    for target in range(world_size):
        if target == source:
            continue
        there = torch.device("cuda", target) if timer.gpu else torch.device("cpu")
        sink = torch.empty(size, dtype=torch.uint8, device=there)
        seconds = timer.seconds(
            lambda sink=sink: sink.copy_(sent, non_blocking=True), COPY_ROUNDS, device=source
        )
        if spoil == (source, target):
            sink[size // 2 + 1] ^= 1
        pairs.append(
            {
                "source": source,
                "target": target,
                "gbps": round(size / seconds / 1e9, 2),
                "corrupt": not is_copy(torch, sink, sent),
            }
        )
    return pairs


def all_reduce_seconds(
    torch: Any, dist: Any, device: Any, rank: int, world_size: int, message_bytes: int, timer: Timer
) -> tuple[float, float | None]:
    """Return the seconds of one all-reduce, and a wrong sum if one was among its results."""
    tensor = torch.ones(message_bytes // 4, device=device, dtype=torch.float32)
    dist.all_reduce(tensor)
    wrong = next((end for end in (float(tensor.min()), float(tensor.max())) if end != world_size), None)
    tensor.zero_()  # sums of zeros stay zero over any number of rounds
    return timer.seconds(lambda: dist.all_reduce(tensor), ALLREDUCE_ROUNDS, device=rank), wrong


def measure(torch: Any, dist: Any, rank: int, options: argparse.Namespace) -> None:
    """Measure everything as one rank. Rank 0 makes all copies, so that only it needs a context on every GPU."""

    def record(event: str, **fields: Any) -> None:
        emit({"rank": rank, "event": event, **fields})

    gpu = options.backend == "nccl"
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    uuid = ""
    if gpu:
        torch.cuda.set_device(device)
        uuid = f"GPU-{str(torch.cuda.get_device_properties(device).uuid).removeprefix('GPU-')}"
    # The parent kills the ranks earlier: a hang must not look like an error.
    deadline = timedelta(seconds=options.timeout_s + 30)
    store = dist.FileStore(options.store, options.world_size)
    store.set_timeout(deadline)
    dist.init_process_group(
        options.backend,
        store=store,
        rank=rank,
        world_size=options.world_size,
        timeout=deadline,
        **({"device_id": device} if gpu else {}),
    )
    dist.barrier()
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if gpu else ""
    record("started", seconds=time.monotonic() - STARTED, nccl=nccl, uuid=uuid, torch=torch.__version__)
    if options.hang_rank == rank:
        time.sleep(3600)
    began = time.monotonic()
    timer = Timer(torch, gpu=gpu)
    seconds, wrong = all_reduce_seconds(
        torch, dist, device, rank, options.world_size, options.message_bytes, timer
    )
    record("all_reduce", seconds=seconds, wrong_sum=wrong)
    if rank == 0:
        for source in range(options.world_size):
            pairs = copies_from(torch, source, options.world_size, timer, spoil=options.spoil)
            record(f"copies_{source}", pairs=pairs)
        store.set(COPIES_DONE, "yes")
    # Wait on the CPU: a barrier's kernel would spin on the GPUs that rank 0 copies to (measured: 119 GB/s into such a GPU,
    # 391 GB/s out of it).
    store.wait([COPIES_DONE])
    dist.barrier()
    record("memory", gbps=memory_gbps(torch, device, rank, timer))
    link = HostLink(torch, device, rank, timer)
    # In turn: GPUs that copy at once share host memory and PCIe switches (4 x H100 in a VM: 36 of 54 GB/s each). The others
    # wait on the CPU, as above.
    store.wait([f"{HOST_LINK_DONE}{rank - 1}"] if rank else [COPIES_DONE])
    record("host_link", **link.gbps(repeats=HOST_COPY_REPEATS))
    store.set(f"{HOST_LINK_DONE}{rank}", "yes")
    store.wait([f"{HOST_LINK_DONE}{options.world_size - 1}"])
    record("host_link_together", **link.gbps(repeats=1))
    dist.barrier()
    record("gemm", tflops=gemm_tflops(torch, device, rank, timer))
    dist.barrier()
    record("done", seconds=time.monotonic() - began)


def run_rank(torch: Any, dist: Any, rank: int, options: argparse.Namespace) -> None:
    """Measure as a forked rank and exit, without a clean-up that could hang."""
    try:
        measure(torch, dist, rank, options)
    except Exception as error:  # noqa: BLE001  (any error of torch is reported to the parent)
        words = " ".join(str(error).split())[:300]
        emit({"rank": rank, "event": "error", "text": f"{type(error).__name__}: {words}"})
        os._exit(1)
    os._exit(0)


def end_with_parent(parent: int) -> None:
    """Kill the whole group once the parent is gone, so that a killed triage leaves no rank on a GPU."""
    while os.getppid() == parent:
        time.sleep(0.3)
    os.killpg(0, signal.SIGKILL)


def main(argv: list[str] | None = None) -> int:
    """Import torch, fork the ranks and wait for them. Exit 0, or 1 if a rank failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world-size", type=int, required=True)
    parser.add_argument("--backend", choices=("nccl", "gloo"), required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--message-bytes", type=int, required=True)
    parser.add_argument("--timeout-s", type=float, required=True)
    parser.add_argument(
        "--hang-rank", type=int, default=-1, help="for tests: this rank never enters the all-reduce"
    )
    parser.add_argument(
        "--spoil",
        type=lambda text: tuple(map(int, text.split(":"))) if text else None,
        help="for tests: SOURCE:TARGET, a copy that is corrupted",
    )
    options = parser.parse_args(argv)
    parent = os.getppid()
    import torch
    import torch.distributed as dist

    if options.backend == "gloo":
        torch.set_num_threads(1)
    emit({"rank": -1, "event": "imported", "seconds": time.monotonic() - STARTED})
    pids = []
    for rank in range(options.world_size):
        pid = os.fork()
        if pid == 0:
            run_rank(torch, dist, rank, options)
        pids.append(pid)
    emit({"rank": -1, "event": "forked", "pids": pids})
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in pids)


if __name__ == "__main__":
    sys.exit(main())
