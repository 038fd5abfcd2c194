"""Run everything that needs GPUs on a host that has some, and record the results: one JSON file, one log, snapshots.

    python -m benchmarks.gpu.validate --out DIR [--only SECTION ...]

Every section has a deadline of its own and fails alone. What needs two GPUs is skipped on one, and the record says so. It
changes no setting of a GPU and leaves NVLink multicast off in everything that it starts (`NO_MULTICAST`).
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.gpu.checkpoint import checkpoint
from benchmarks.gpu.conditions import conditions
from benchmarks.gpu.flight import flight_recorder
from benchmarks.gpu.golden import golden_prompts
from benchmarks.gpu.runbook import whole_runbook
from benchmarks.gpu.standby import fall_back_to_standby, standby
from benchmarks.gpu.traces import traces
from gpu_actions.config.host import EngineConfig
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.loadtest.child import run_in_child
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.serving.interfaces import Engine, Unit
from gpu_actions.serving.registry import build_engine
from gpu_actions.serving.units.process import ProcessUnit
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.model import save_snapshot
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.system.processes import run_process
from gpu_actions.triage.judge import judge

NO_MULTICAST = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}
PORT = 18101
PROMPTS = ("The light of the rack", "NVLink 7 is down on GPU 3", "a", "x" * 200)
Record = dict[str, Any]


class Validation:
    """What the sections share: how many GPUs there are, where files go, and how an engine is started."""

    def __init__(self, out: Path, work: Path, gpus: int) -> None:
        self.out, self.work, self.gpus = out, work, gpus
        self._starts = 0

    @contextlib.asynccontextmanager
    async def engine(
        self, ranks: int, *flags: str, env: dict[str, str] | None = None
    ) -> AsyncIterator[tuple[Unit, Engine, float]]:
        """Run an engine on `ranks` GPUs as a supervised unit. Yield the unit, the engine and its seconds to the first token."""
        self._starts += 1
        argv = (
            "{python}", "-m", "demo.engine", "--port", str(PORT), "--model-name", "m",
            "--tensor-parallel-size", str(ranks), "--device", "cuda" if self.gpus else "cpu", *flags,
        )  # fmt: skip
        config = ProcessUnit(argv=argv, env=self.environment(env), restart=False)
        unit = config.build(f"engine{self._starts}", state_dir=self.work / "units")
        engine = build_engine(EngineConfig(kind="reference", url=f"http://127.0.0.1:{PORT}", model="m"))
        began = time.monotonic()
        await unit.start()
        try:

            async def alive() -> bool:
                return (await unit.state()).active

            try:
                await engine.wait_ready(timeout_s=120, still_starting=alive)
            except Exception:
                print(await unit.log_tail(3000), flush=True)
                raise
            yield unit, engine, time.monotonic() - began
        finally:
            await unit.stop(grace_s=5)

    def environment(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        """Return the environment of an engine: the path of our package, no multicast, and what the section adds."""
        return {"PYTHONPATH": str(Path.cwd()), **NO_MULTICAST, **(extra or {})}

    async def target(self, unit: Unit, ranks: int, **more: Any) -> TriageTarget:
        state = await unit.state()
        return TriageTarget(
            host="gpu-host",
            engine_url=f"http://127.0.0.1:{PORT}",
            model="m",
            pids=(state.main_pid,) if state.main_pid else (),
            ranks=ranks,
            unit_active=state.active,
            ras="127.0.0.1:28028" if ranks > 1 else None,
            **more,
        )

    async def triage(self, name: str, target: TriageTarget, *, deep: bool = False) -> Record:
        """Run one triage. Its snapshot is kept as DIR/NAME.snapshot.json."""
        began = time.monotonic()
        snapshot = await collect(target, TriageThresholds(), deep=deep)
        collected_s = time.monotonic() - began
        verdict = judge(snapshot, TriageThresholds())
        save_snapshot(snapshot, self.out / f"{name}.snapshot.json")
        loud = [f for f in verdict.findings if f.severity not in ("ok", "info")]
        return {
            "verdict": verdict.verdict.value,
            "cause": verdict.cause,
            "summary": verdict.summary,
            "seconds": round(collected_s, 2),
            "window_s": snapshot.window_s,
            "findings": [f"{f.severity.value} {f.id}: {f.summary}" for f in loud],
            "evidence": {f.id: f.evidence for f in loud},
            "fallback_gpu": verdict.fallback_gpu.model_dump() if verdict.fallback_gpu else None,
        }

    async def until_hang(
        self, name: str, target: TriageTarget, *, since: float, limit_s: float = 40
    ) -> Record:
        """Repeat triage until it reports nccl_hang. Return the last record, with the seconds since the injection."""
        checks = 0
        while True:
            checks += 1
            record = await self.triage(name, target)
            record["since_injection_s"] = round(time.monotonic() - since, 2)
            record["looks"] = checks
            if record["cause"] == "nccl_hang" or time.monotonic() - since > limit_s:
                return record


async def environment(v: Validation) -> Record:
    code = (
        "import torch,json;print(json.dumps({'torch':torch.__version__,'cuda':torch.version.cuda,"
        "'nccl':'.'.join(map(str,torch.cuda.nccl.version())) if torch.cuda.is_available() else None,"
        "'gpus':[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]}))"
    )
    info = await run_process([sys.executable, "-c", code], timeout_s=120)
    topology = await run_process(["nvidia-smi", "topo", "-m"], timeout_s=30) if v.gpus else None
    driver = (
        await run_process(["nvidia-smi", "--query-gpu=driver_version,uuid", "--format=csv"], timeout_s=30)
        if v.gpus
        else None
    )
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        **json.loads(info.stdout),
        "driver": driver.stdout if driver else None,
        "topology": topology.stdout if topology else None,
    }


async def _tokens(engine: Engine) -> list[str]:
    async with aiohttp.ClientSession() as session:
        texts = []
        for prompt in PROMPTS:
            body = {"model": "m", "prompt": prompt, "max_tokens": 48, "temperature": 0, "ignore_eos": True}
            async with session.post(f"{engine.url}/v1/completions", json=body) as response:
                answer = await response.json()
                texts.append(answer["choices"][0]["text"])
        return texts


async def engine_equality(v: Validation) -> Record:
    """TP=1 and TP=N generate the same text in float32; the seconds to the first token of each."""
    record: Record = {}
    outputs = {}
    for ranks in (1, v.gpus) if v.gpus > 1 else (1,):
        async with v.engine(ranks, "--dtype", "float32") as (_, engine, ready_s):
            outputs[ranks] = await _tokens(engine)
            record[f"tp{ranks}"] = {"first_token_s": round(ready_s, 2)}
    async with (
        v.engine(1, "--dtype", "float32", env={"CUDA_VISIBLE_DEVICES": ""})
        if v.gpus == 0
        else v.engine(1, "--dtype", "bfloat16") as (_, _engine, ready_s)
    ):
        record["tp1_bfloat16"] = {"first_token_s": round(ready_s, 2)}
    record["outputs"] = outputs
    record["tokens_compared"] = 48 * len(PROMPTS)
    record["equal"] = (
        len({json.dumps(texts) for texts in outputs.values()}) == 1 if len(outputs) > 1 else None
    )
    if len(outputs) == 1:
        record["not_run"] = "TP=2 equal to TP=1 needs two GPUs"
    return record


async def triage_healthy(v: Validation) -> Record:
    ranks = max(1, v.gpus)
    async with v.engine(ranks) as (unit, _, ready_s):
        target = await v.target(unit, ranks, expect_gpus=v.gpus)
        return {
            "first_token_s": ready_s,
            "first": await v.triage("healthy", target),
            "second": await v.triage("healthy", target),
        }


async def triage_deep(v: Validation) -> Record:
    target = TriageTarget(host="gpu-host", completion=False, expect_gpus=v.gpus, tier_expected=False)
    return {
        "first": await v.triage("deep", target, deep=True),
        "second": await v.triage("deep", target, deep=True),
    }


async def triage_pcie_only(v: Validation) -> Record:
    if v.gpus < 2:
        return {"not_run": "a PCIe-only failover needs two GPUs"}
    async with v.engine(v.gpus, env={"NCCL_P2P_DISABLE": "1"}) as (unit, _, _ready):
        return await v.triage("pcie_only", await v.target(unit, v.gpus, expect_gpus=v.gpus))


async def _load(url: str, stop: asyncio.Event) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:

        async def one() -> None:
            body = {"model": "m", "prompt": "load", "max_tokens": 32, "ignore_eos": True}
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.post(f"{url}/v1/completions", json=body) as response:
                    await response.read()

        async with asyncio.TaskGroup() as visitors:
            while not stop.is_set():
                visitors.create_task(one())
                await asyncio.sleep(0.25)


@contextlib.asynccontextmanager
async def _loaded(url: str) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(_load(url, stop))
    try:
        yield
    finally:
        stop.set()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, BaseExceptionGroup):
            await task


async def triage_frozen_rank(v: Validation) -> Record:
    """Stop a rank with SIGSTOP, and time triage until it reports the hang. Needs two GPUs."""
    if v.gpus < 2:
        return {"not_run": "a frozen rank beside a living one needs two GPUs"}
    async with v.engine(v.gpus) as (unit, engine, _ready), _loaded(engine.url):
        await asyncio.sleep(2)
        ranks = [
            p for p in (await unit.state()).pids if b"--rank\0001" in Path(f"/proc/{p}/cmdline").read_bytes()
        ]
        os.kill(ranks[0], signal.SIGSTOP)
        since = time.monotonic()
        record = await v.until_hang(
            "frozen_rank", await v.target(unit, v.gpus, expect_gpus=v.gpus), since=since
        )
        os.kill(ranks[0], signal.SIGCONT)
        return record


async def triage_sleeping_rank(v: Validation) -> Record:
    """A rank that sleeps before its collective: an authentic mismatch of operation counts."""
    if v.gpus < 2:
        return {"not_run": "a rank that sleeps before its collective needs two GPUs"}
    flags = ("--drill-sleep-rank", "1", "--drill-sleep-after-s", "15", "--drill-sleep-s", "90")
    began = time.monotonic()
    async with v.engine(v.gpus, *flags) as (unit, engine, _ready), _loaded(engine.url):
        await asyncio.sleep(max(0.0, began + 16.5 - time.monotonic()))
        target = await v.target(unit, v.gpus, expect_gpus=v.gpus)
        return await v.until_hang("sleeping_rank", target, since=began + 15)


async def load_tests(v: Validation) -> Record:
    """The load test against one GPU and against all of them, with energy."""
    record: Record = {}
    for ranks in (1, v.gpus) if v.gpus > 1 else (1,):
        async with v.engine(ranks, "--max-num-seqs", "64") as (_, engine, _ready):
            for qps in (3, 60):
                spec = LoadSpec(
                    url=engine.url, model="m", duration_s=20, target_qps=qps, max_new_tokens=16,
                    prompt_len_min=32, prompt_len_max=64, gpus=ranks, tensor_parallel=ranks, warmup_s=2,
                )  # fmt: skip
                folder = v.work / f"load-{ranks}-{qps}"
                result = await run_in_child(spec, folder)
                (v.out / f"load-tp{ranks}-{qps}qps.json").write_text((folder / "load_test.json").read_text())
                record[f"tp{ranks} at {qps} QPS"] = (folder / "summary.txt").read_text().splitlines()
                record[f"tp{ranks} at {qps} QPS verdict"] = result.verdict.value
    return record


async def runbook(v: Validation) -> Record:
    return await whole_runbook(v.work / "runbook", gpus=v.gpus, environment=v.environment())


SECTIONS: dict[str, tuple[Callable[[Validation], Awaitable[Record]], float]] = {
    "environment": (environment, 150),
    "engine": (engine_equality, 200),
    "healthy": (triage_healthy, 90),
    "deep": (triage_deep, 90),
    "pcie_only": (triage_pcie_only, 90),
    "frozen_rank": (triage_frozen_rank, 120),
    "sleeping_rank": (triage_sleeping_rank, 150),
    "conditions": (conditions, 200),
    "traces": (traces, 200),
    "flight_recorder": (flight_recorder, 120),
    "load": (load_tests, 240),
    "golden": (golden_prompts, 240),
    "runbook": (runbook, 300),
    "standby": (standby, 300),
    "fall_back_to_standby": (fall_back_to_standby, 120),
    "checkpoint": (checkpoint, 240),
}


def gpu_count() -> int:
    """GPUs that the driver knows, without importing torch here."""
    with contextlib.suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    return 0


async def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    records: dict[str, Record] = {}
    with tempfile.TemporaryDirectory(prefix="gv") as work:
        v = Validation(options.out, Path(work), gpu_count())
        for name in options.only:
            section, limit_s = SECTIONS[name]
            began = time.monotonic()
            print(f"== {name}", flush=True)
            try:
                async with asyncio.timeout(limit_s):
                    records[name] = await section(v)
            except Exception as error:  # noqa: BLE001  (it is printed and recorded; the next section goes on)
                traceback.print_exc()
                records[name] = {"failed": f"{type(error).__name__}: {error}"}
            records[name]["section_s"] = round(time.monotonic() - began, 1)
            print(json.dumps(records[name], indent=1, default=str)[:6000], flush=True)
            (options.out / "validation.json").write_text(json.dumps(records, indent=1, default=str))
    return 1 if any("failed" in record for record in records.values()) else 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
