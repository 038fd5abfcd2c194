"""Speed and memory of the trace summary: a Chrome trace of 1 GB (GPU kernels and CPU operators) in the child process.

`python -m benchmarks.trace_summary [MIB]` writes a trace of that size, summarises it, and prints MB/s and the child's peak
memory. The limit is 300 MB at 1 GB.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_MB = 300
NAMES = [f"void kernel_number_{number}<float, int, {number}>(at::TensorIterator)" for number in range(200)]


def write_trace(path: Path, size_bytes: int) -> int:
    """Write a trace as the torch profiler formats it: one kernel for each operator, a collective in every tenth."""
    events = 0
    with path.open("w") as file:
        file.write('{"schemaVersion": 1, "traceEvents": [\n')
        at = 0.0
        while file.tell() < size_bytes:
            block = []
            for _ in range(1000):
                name = "ncclDevKernel_AllReduce_Sum_bf16" if events % 20 == 0 else NAMES[events % len(NAMES)]
                common = {"ph": "X", "pid": 0, "ts": round(at, 3), "dur": 8.25}
                kernel = {"cat": "kernel", "name": name, "tid": 7, "args": {"stream": 7, "grid": [1, 2, 3]}}
                operator = {
                    "cat": "cpu_op",
                    "name": f"aten::op{events % 60}",
                    "tid": 1,
                    "args": {"External id": events},
                }
                block += [{**common, **operator}, {**common, **kernel}]
                at += 10.0
                events += 2
            file.write(
                (",\n" if events > 2000 else "") + ",\n".join(json.dumps(event, indent=2) for event in block)
            )
        file.write("\n]}\n")
    return events


def main() -> None:
    size_bytes = int(sys.argv[1] if len(sys.argv) > 1 else 1024) * 1024**2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace-rank0.json"
        events = write_trace(path, size_bytes)
        started = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "gpu_actions.trace", str(path)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        summary = json.loads(child.stdout.read())
        _, status, usage = os.wait4(child.pid, 0)
        seconds, peak_mb = time.monotonic() - started, usage.ru_maxrss / 1024
        mb = path.stat().st_size / 1e6
    rank = summary["ranks"][0]
    assert status == 0 and rank["kernels"] == events // 2
    print(f"{mb:,.0f} MB, {events:,} events: {seconds:.1f} s, {mb / seconds:.0f} MB/s, peak {peak_mb:.0f} MB")
    print(
        f"GPU idle {rank['gpu_idle_percent']:.1f} % (true: 17.5), communication {rank['nccl_percent']:.1f} % (true: 10.0)"
    )
    if mb >= 1000:
        print(f"memory limit {LIMIT_MB} MB: {'met' if peak_mb <= LIMIT_MB else 'MISSED'}")


if __name__ == "__main__":
    main()
