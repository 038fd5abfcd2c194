"""A small real server for tests of the runbook's steps: OpenAI completions, vLLM's metrics, ranks that every token needs.

It starts in half a second, so that many scenarios fit into the suite; the reference engine plays the main ones. A token takes
one round trip through each rank, a child process: a stopped rank truly hangs the engine while its pages go on answering. With
`--slots` only so many requests generate at once and the others wait, as in an engine with a limited batch.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web

RANK = (
    "import sys\nfor line in sys.stdin.buffer:\n sys.stdout.buffer.write(line); sys.stdout.buffer.flush()\n"
)
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


TOKEN_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


class Histogram:
    def __init__(self, name: str, bounds: tuple[float, ...] = BOUNDS) -> None:
        self.name, self.bounds, self.values = name, bounds, [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.total += value
        self.values[sum(value > bound for bound in self.bounds)] += 1

    def text(self) -> str:
        seen, lines = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.values, strict=True):
            seen += count
            lines.append(f'{self.name}_bucket{{le="{bound}"}} {seen}')
        return "\n".join([*lines, f"{self.name}_sum {self.total}", f"{self.name}_count {seen}"])


class Engine:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.ranks: list[asyncio.subprocess.Process] = []
        self.step = asyncio.Lock()
        self.next_trip: asyncio.Task[None] | None = None
        self.slots = asyncio.Semaphore(options.slots or 1_000_000)
        self.waiting = self.running = self.finished = self.tokens = self.prompt_tokens = 0
        self.ttft = Histogram("vllm:time_to_first_token_seconds")
        self.e2e = Histogram("vllm:e2e_request_latency_seconds", (*BOUNDS, 20.0, 30.0, 60.0))
        self.queue = Histogram("vllm:request_queue_time_seconds")
        self.prompt_lengths = Histogram("vllm:request_prompt_tokens", TOKEN_BOUNDS)
        self.answer_lengths = Histogram("vllm:request_generation_tokens", TOKEN_BOUNDS)
        self.answers = 0
        self.cache = 0.1
        self.asleep = False

    async def start_ranks(self) -> None:
        for _ in range(self.options.ranks - 1):
            self.ranks.append(
                await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-S",
                    "-c",
                    RANK,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )
            )

    async def token(self) -> None:
        if self.next_trip is None:
            self.next_trip = asyncio.create_task(self.round_trip())
        await asyncio.shield(self.next_trip)
        await asyncio.sleep(self.slow_s())
        self.tokens += 1

    async def round_trip(self) -> None:
        """Go through each rank once. All requests that ask while another round trip is under way share this one."""
        async with self.step:
            self.next_trip = None
            for rank in self.ranks:
                assert rank.stdin is not None
                assert rank.stdout is not None
                rank.stdin.write(b"go\n")
                await rank.stdin.drain()
                if not await rank.stdout.readline():
                    raise RuntimeError("a rank is gone")

    def slow_s(self) -> float:
        """Return the seconds per token. Writing `--slow-file` slows a running engine down."""
        slow = self.options.slow_file
        if slow and Path(slow).exists():
            return float(Path(slow).read_text())
        return float(self.options.token_s)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body.get("model") != self.options.model:
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        if self.asleep:
            return web.json_response({"error": {"message": "asleep"}}, status=503)
        broken = self.options.error_file
        how = Path(broken).read_text() if broken and Path(broken).exists() else None
        if how == "":
            return web.json_response({"error": {"message": "internal"}}, status=500)
        if how:
            return await self.badly(request, how)
        began = time.monotonic()
        self.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.waiting -= 1
        self.queue.add(time.monotonic() - began)
        self.running += 1
        try:
            await self.read_prompt()
            await self.token()
            self.ttft.add(time.monotonic() - began)
            self.answers += 1
            if self.options.die_after and self.answers >= self.options.die_after:
                sys.stderr.write("out of memory, says the tiny engine\n")
                sys.stderr.flush()
                import os

                os._exit(9)
            count = int(body.get("max_tokens", 4))
            if not body.get("stream"):
                for _ in range(count - 1):
                    await self.token()
                self._end(began, body, count)
                choice = {"text": self.word() * count, "finish_reason": "length"}
                return web.json_response(
                    {
                        "choices": [choice | {"logprobs": self.logprobs(body, count)}],
                        "system_fingerprint": self.options.name,
                        "usage": {
                            "completion_tokens": count,
                            "prompt_tokens": len(re.findall(r"\s*\S+", str(body["prompt"]))),
                        },
                    }
                )
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for number in range(count):
                if number:
                    await self.token()
                last = number == count - 1
                await self._send(
                    response,
                    {
                        "choices": [{"text": self.word(), "finish_reason": "length" if last else None}],
                        "system_fingerprint": self.options.name,
                    },
                )
            self._end(began, body, count)
            usage = {"completion_tokens": count, "prompt_tokens": len(str(body["prompt"]))}
            await self._send(response, {"choices": [], "usage": usage})
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
            return response
        finally:
            self.running -= 1
            self.slots.release()

    async def badly(self, request: web.Request, how: str) -> web.StreamResponse:
        """Answer with status 200 and then wrongly: an `error` event, or a stream that is `unended` or `empty`."""
        await self.token()
        said = {"choices": [{"text": "" if how == "empty" else self.word(), "finish_reason": None}]}
        broken = {"error": {"message": "internal"}} if how == "error" else {"choices": []}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for data in (said | {"system_fingerprint": self.options.name}, broken):
            await self._send(response, data)
        if how != "unended":
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def read_prompt(self) -> None:
        """Read a long prompt for as many seconds as `--prefill-file` says: no token comes, and the KV cache fills."""
        long = self.options.prefill_file
        ends_at = time.monotonic() + (float(Path(long).read_text()) if long and Path(long).exists() else 0)
        while time.monotonic() < ends_at:
            await asyncio.sleep(0.1)
            self.cache += 0.001

    def word(self) -> str:
        """Return the text of every generated token. Writing `--wrong-file` makes a running engine answer wrongly."""
        wrong = self.options.wrong_file
        return " lie" if wrong and Path(wrong).exists() else " tok"

    def logprobs(self, body: dict[str, Any], count: int) -> dict[str, Any] | None:
        """Score the answer, and with `echo` the prompt too. A token of a prompt is a word with the space before it."""
        if body.get("logprobs") is None:
            return None
        before = re.findall(r"\s*\S+", str(body["prompt"])) if body.get("echo") else []
        tokens = [*before, *[self.word()] * count]
        values: list[float | None] = [-0.1 if token == self.word() else -6.0 for token in tokens]
        if before:
            values[0] = None
        return {"tokens": tokens, "token_logprobs": values}

    def _end(self, began: float, body: dict[str, Any], count: int) -> None:
        self.e2e.add(time.monotonic() - began)
        self.finished += 1
        self.prompt_tokens += len(str(body["prompt"]))
        self.prompt_lengths.add(len(str(body["prompt"])))
        self.answer_lengths.add(count)

    @staticmethod
    async def _send(response: web.StreamResponse, data: dict[str, Any]) -> None:
        await response.write(f"data: {json.dumps(data)}\n\n".encode())

    def histograms(self) -> tuple[Histogram, ...]:
        lengths = () if self.options.no_lengths else (self.prompt_lengths, self.answer_lengths)
        return (self.ttft, self.e2e, self.queue, *lengths)

    async def mute(self) -> None:
        """Never answer while `--mute-file` exists, as an engine does whose event loop is starved."""
        while self.options.mute_file and Path(self.options.mute_file).exists():
            await asyncio.sleep(0.1)

    async def sleep(self, request: web.Request) -> web.Response:
        self.asleep = True
        return web.json_response({})

    async def wake_up(self, request: web.Request) -> web.Response:
        """Wake, unless `--wake-file` says how not to: `refuse` with an error, `hang` half-way, or `die` out of memory."""
        how = self.options.wake_file and Path(self.options.wake_file).exists()
        match Path(self.options.wake_file).read_text() if how else "":
            case "refuse":
                return web.json_response({"error": {"message": "no room on the GPU"}}, status=500)
            case "hang":
                await asyncio.sleep(600)
            case "die":
                import os

                print("torch.OutOfMemoryError: CUDA out of memory at wake-up", file=sys.stderr, flush=True)
                os._exit(1)
        self.asleep = False
        return web.json_response({})

    async def is_sleeping(self, request: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": self.asleep})

    async def health(self, request: web.Request) -> web.Response:
        await self.mute()
        return web.Response(text="ok")

    async def metrics(self, request: web.Request) -> web.Response:
        await self.mute()
        lines = [
            f"vllm:num_requests_running {self.running}",
            f"vllm:num_requests_waiting {self.waiting}",
            f"vllm:generation_tokens_total {self.tokens}",
            f"vllm:prompt_tokens_total {self.prompt_tokens}",
            f'vllm:request_success_total{{finished_reason="length"}} {self.finished}',
            f"vllm:kv_cache_usage_perc {self.cache}",
            *(histogram.text() for histogram in self.histograms()),
        ]
        return web.Response(text="\n".join(lines) + "\n")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="m")
    parser.add_argument(
        "--name", default="tiny", help="sent as system_fingerprint, so that clients know who answered"
    )
    parser.add_argument("--slots", type=int, default=0, help="requests that generate at once; 0: all")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--token-s", type=float, default=0.005)
    parser.add_argument("--startup-s", type=float, default=0.0)
    parser.add_argument("--fail-starts", default="", help="a file that holds how many starts still fail")
    parser.add_argument(
        "--no-lengths", action="store_true", help="export no histograms of the lengths of requests"
    )
    parser.add_argument("--die-after", type=int, default=0)
    parser.add_argument("--slow-file", default="")
    parser.add_argument("--error-file", default="")
    parser.add_argument("--mute-file", default="")
    parser.add_argument("--no-sleep", action="store_true")
    parser.add_argument("--say", default="", help="a file whose content it logs at its start")
    parser.add_argument("--wake-file", default="")
    parser.add_argument("--wrong-file", default="")
    parser.add_argument("--prefill-file", default="")
    options = parser.parse_args()
    if options.fail_starts and (left := int(Path(options.fail_starts).read_text())):
        Path(options.fail_starts).write_text(str(left - 1))
        sys.exit("CUDA error: device is sick, says the tiny engine")
    if options.say and Path(options.say).exists():
        sys.stderr.write(Path(options.say).read_text())
    engine = Engine(options)
    await engine.start_ranks()
    await asyncio.sleep(options.startup_s)
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/v1/completions", engine.completions)
    if not options.no_sleep:
        app.router.add_post("/sleep", engine.sleep)
    app.router.add_post("/wake_up", engine.wake_up)
    app.router.add_get("/is_sleeping", engine.is_sleeping)
    app.router.add_get("/metrics", engine.metrics)
    app.router.add_get("/health", engine.health)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", options.port, shutdown_timeout=5).start()
    sys.stderr.write("ready\n")
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    import signal

    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await runner.cleanup()
    for rank in engine.ranks:
        rank.terminate()


if __name__ == "__main__":
    asyncio.run(main())
