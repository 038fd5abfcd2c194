"""A tier of several servers, each with a port of its own: which replica hangs, is down or reads a prompt, and its rank."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Verdict
from gpu_actions.serving.engines.settings import EngineSettings
from gpu_actions.serving.registry import build_engine
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.system.listening import until_listening
from gpu_actions.system.proc import process_table
from gpu_actions.triage.judge import judge
from tests.ports import free_port

LIMITS = TriageThresholds(window_s=0.4, completion_deadline_s=1, metrics_timeout_s=1)

SERVER = r"""
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
lie, port, began = sys.argv[1], int(sys.argv[2]), time.monotonic()
if os.fork() == 0:
    os.execv("/bin/bash", ["VLLM::EngineCore", "-c", "while :; do sleep 1; done"])
class Server(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def answer(self, text, kind="text/plain"):
        self.send_response(200); self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text))); self.end_headers(); self.wfile.write(text.encode())
    def do_GET(self):
        if lie == "silent": time.sleep(60)
        passed = time.monotonic() - began
        tokens = 100 if lie in ("hangs", "prefills", "idle", "loses") else int(100 + 500 * passed)
        self.answer(
            f"vllm:num_requests_running {0 if lie in ('idle', 'loses') else 3}\n"
            f"vllm:generation_tokens_total {tokens}\n"
            f"vllm:kv_cache_usage_perc {0.1 + (0.01 * passed if lie == 'prefills' else 0)}\n")
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if lie in ("hangs", "prefills", "silent", "loses"): time.sleep(60)
        rows = ['{"choices": [{"text": "a", "finish_reason": null}]}'] * 2
        rows += ['{"choices": [{"text": "", "finish_reason": "length"}]}']
        rows += ['{"choices": [], "usage": {"completion_tokens": 2}}', "[DONE]"]
        self.answer("".join(f"data: {row}\n\n" for row in rows), "text/event-stream")
ThreadingHTTPServer(("127.0.0.1", port), Server).serve_forever()
"""


@contextmanager
def servers(*lies: str) -> Iterator[tuple[list[str], list[subprocess.Popen[bytes]]]]:
    """Run one server a replica, each with a worker; `down` is none. Yield their addresses and processes."""
    ports = [free_port() for _ in lies]
    started = [
        subprocess.Popen([sys.executable, "-c", SERVER, lie, str(port)], start_new_session=True)
        for lie, port in zip(lies, ports, strict=True)
        if lie != "down"
    ]
    try:
        yield [f"http://127.0.0.1:{port}" for port in ports], started
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def triage_of(
    urls: list[str], *, front: str = "", lies: tuple[str, ...] = (), only: frozenset[str] | None = None
) -> tuple[Snapshot, Verdict]:
    for url, lie in zip((*urls, front) if front else urls, lies, strict=False):
        if lie != "down":
            await until_listening(url, deadline=asyncio.get_running_loop().time() + 30)
    target = TriageTarget(
        expect_gpus=0, engine_url=front or urls[0], replica_urls=tuple(urls), ranks=len(urls), model="m"
    )
    snapshot = await collect(target, LIMITS, only=only)
    return snapshot, judge(snapshot, LIMITS)


CASES = {
    "all serve": (("serves", "serves", "idle"), "healthy", "none", ""),
    "one hangs": (("serves", "hangs", "serves"), "watch", "engine_stalled", "serving.replica_flat"),
    "one answers nothing": (("serves", "serves", "silent"), "watch", "engine_stalled", "serving.replica_flat"),
    "the one at the tier's address hangs": (("hangs", "serves"), "watch", "engine_stalled", "serving.replica_flat"),
    "one lost its requests and reports none": (("serves", "loses"), "watch", "engine_stalled", "serving.replica_flat"),
    "one hangs and the other has no request": (("idle", "hangs"), "watch", "engine_stalled", "serving.replica_flat"),
    "one reads a long prompt": (("serves", "prefills"), "healthy", "none", ""),
    "one is down": (("serves", "down"), "watch", "engine_down", "serving.replica_down"),
    "all are down": (("down", "down"), "fall_back", "engine_down", "serving.down"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_a_tier_of_several_servers_is_judged_replica_by_replica(name: str) -> None:
    lies, verdict, cause, rule = CASES[name]
    with servers(*lies) as (urls, _):
        snapshot, judged = await triage_of(urls, lies=lies)
    found = {finding.id: finding for finding in judged.findings}
    assert (judged.verdict, judged.cause) == (verdict, cause), judged.findings
    if rule.startswith("serving.replica"):
        (bad,) = [number for number, lie in enumerate(lies) if lie not in ("serves", "idle")]
        assert found[rule].subject == f"replica {urls[bad].removeprefix('http://')}"
    if "down" not in lies:
        assert snapshot.ranks is not None
        workers = {row.rank: row.coordinates for row in snapshot.ranks.processes if row.rank is not None}
        assert workers == {number: {"DP": number} for number in range(len(lies))}


async def test_the_hung_replicas_rank_is_named_with_what_heals_it() -> None:
    with servers("serves", "hangs") as (urls, processes):
        await until_listening(urls[1], deadline=asyncio.get_running_loop().time() + 30)
        (worker,) = [pid for pid, row in process_table().items() if row.parent == processes[1].pid]
        os.kill(worker, signal.SIGSTOP)
        _, judged = await triage_of(urls, lies=("serves", "hangs"))
    hung = next(one for one in judged.findings if one.id == "serving.replica_flat")
    assert f"rank 1 DP1 (pid {worker}) is stopped" in hung.summary
    assert hung.evidence["culprits"] == [{"rank": 1, "kind": "stopped", "where": f"pid {worker}"}]
    assert f"kill -CONT {worker}" in hung.action and judged.verdict == "watch"


async def test_a_router_of_the_engine_that_hangs_before_replicas_that_serve_is_named_and_is_no_hung_replica() -> (
    None
):
    lies = ("serves", "serves", "hangs")
    with servers(*lies) as (urls, _):
        _, judged = await triage_of(urls[:2], front=urls[2], lies=lies)
        assert (judged.verdict, judged.cause) == ("unknown", "engine_stalled")
        assert judged.findings[0].id == "serving.front" and urls[2] in judged.summary
        _, without = await triage_of([*urls[:2], urls[2]], lies=lies)
        assert without.verdict == "watch"
    _, gone = await triage_of(urls[:2], front=urls[2])
    assert (gone.verdict, gone.cause) == ("fall_back", "engine_down")


async def test_a_monitor_that_sends_no_completion_does_not_call_a_tier_hung_of_which_a_replica_has_no_request() -> (
    None
):
    with servers("idle", "hangs") as (urls, _):
        _, judged = await triage_of(urls, lies=("idle", "hangs"), only=frozenset({"engine"}))
    assert [one.id for one in judged.findings if one.severity == "critical"] == ["serving.replica_flat"]
    assert judged.verdict == "watch"


async def test_the_engines_counters_are_the_sum_of_the_replicas_that_answer() -> None:
    with servers("hangs", "hangs", "down") as (urls, _):
        for url in urls[:2]:
            await until_listening(url, deadline=asyncio.get_running_loop().time() + 30)
        engine = build_engine(EngineSettings(kind="vllm", url=urls[0], replicas=tuple(urls), model="m"))
        metrics = await engine.metrics()
    assert (metrics.running, metrics.generation_tokens, metrics.kv_cache_usage) == (6, 200, 0.1)
