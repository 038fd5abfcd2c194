"""Real things for triage to read: the fake libnvidia-ml.so.1 (built once), engines that misbehave, and RAS servers on TCP."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

SOURCE = Path(__file__).resolve().parents[1] / "data" / "fake_nvml" / "fake_nvml.c"


@pytest.fixture(scope="session")
def build_fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Build the library, without the symbols named; each variant is compiled once a session."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "these tests build a small C library: install gcc (deploy/packages.sh gcc)"
    built: dict[tuple[str, ...], Path] = {}

    def build(*absent: str) -> Path:
        if absent not in built:
            folder = tmp_path_factory.mktemp("fake_nvml")
            library = folder / "libnvidia-ml.so.1"
            renamed = [f"-D{name}=absent_{number}" for number, name in enumerate(absent)]
            argv = [
                compiler,
                "-shared",
                "-fPIC",
                "-Wall",
                "-Werror",
                "-O1",
                *renamed,
                "-o",
                str(library),
                str(SOURCE),
                "-ldl",
            ]
            subprocess.run(argv, check=True, capture_output=True)
            built[absent] = library
        return built[absent]

    return build


@pytest.fixture
def fake_nvml(
    build_fake_nvml: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Path]]:
    """Install a fake driver where the loader finds it first: `fake_nvml("gpus=8", "gpu.3.fail.*=15", absent=("nvmlX",))`."""

    def install(*lines: str, absent: tuple[str, ...] = ()) -> Path:
        folder = tmp_path / "driver"
        folder.mkdir(exist_ok=True)
        shutil.copy(build_fake_nvml(*absent), folder / "libnvidia-ml.so.1")
        (folder / "fake_nvml.conf").write_text("\n".join(lines) + "\n")
        monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
        return folder

    yield install


@dataclass
class FakeEngine:
    """An engine whose truth the test knows. `tokens_per_s` moves its counter; `lie` says how it misbehaves."""

    running: int = 0
    waiting: int = 0
    tokens: float = 1000.0
    tokens_per_s: float = 0.0
    kv_per_s: float = 0.0
    """How fast the KV cache fills while a prompt is read."""
    completion_s: float = 0.0
    completion: str = "ok"
    metrics: str = "ok"
    dialect: str = "vllm"
    counts_at_end: bool = False
    """As SGLang with long streams: the token counter does not move, only the inter-token histogram does."""
    url: str = ""

    def page(self) -> str:
        now = asyncio.get_running_loop().time()
        tokens = self.tokens + (now - self._started) * self.tokens_per_s
        names = (
            ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:generation_tokens_total")
            if self.dialect == "vllm"
            else ("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:generation_tokens_total")
        )
        values = (self.running, self.waiting, self.tokens if self.counts_at_end else tokens)
        itl = f"{self.dialect}:inter_token_latency_seconds"
        return (
            "".join(f'{name}{{model_name="m"}} {value}\n' for name, value in zip(names, values, strict=True))
            + (
                f"{self.dialect}:{'kv_cache_usage_perc' if self.dialect == 'vllm' else 'token_usage'} "
                f"{0.1 + (now - self._started) * self.kv_per_s}\n"
            )
            + (
                f'{itl}_bucket{{le="+Inf",model_name="m"}} {tokens}\n{itl}_sum 1\n'
                if self.counts_at_end
                else ""
            )
        )

    def __post_init__(self) -> None:
        self._started = asyncio.get_running_loop().time()
        self._scrapes = 0

    async def answer_metrics(self, request: web.Request) -> web.StreamResponse:
        self._scrapes += 1
        if self.metrics == "silent":
            await asyncio.sleep(60)
        if self.metrics == "html":
            return web.Response(text="<html>It works!</html>", content_type="text/html")
        if self.metrics == "broken":
            return web.Response(text="vllm:num_requests_running{ oops\n")
        if self.metrics == "nan":
            return web.Response(text="vllm:num_requests_running NaN\nvllm:generation_tokens_total -5\n")
        if self.metrics == "error":
            return web.Response(status=500)
        if self.metrics == "restarts" and self._scrapes > 1:
            self.tokens = 3.0
        return web.Response(text=self.page())

    async def answer_completion(self, request: web.Request) -> web.StreamResponse:
        wanted = (await request.json())["max_tokens"]
        if self.completion == "hang":
            await asyncio.sleep(60)
        await asyncio.sleep(self.completion_s)
        status, _, text = self.completion.partition(":")
        if status.isdigit():
            return web.json_response({"error": {"message": text or "no"}}, status=int(status))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if self.completion == "error_event":
            await response.write(b'data: {"error": {"message": "CUDA error"}}\n\n')
            return response
        if self.completion == "garbage":
            await response.write(b"data: {{{\n\n")
            return response
        for _ in range(wanted if self.completion in ("ok", "cut") else 0):
            await response.write(b'data: {"choices": [{"text": "a", "finish_reason": null}]}\n\n')
        if self.completion == "cut":
            return response
        used = wanted if self.completion == "ok" else 13
        await response.write(b'data: {"choices": [{"text": "", "finish_reason": "length"}]}\n\n')
        await response.write(b'data: {"choices": [], "usage": {"completion_tokens": %d}}\n\n' % used)
        await response.write(b"data: [DONE]\n\n")
        return response


async def answer_models(request: web.Request) -> web.StreamResponse:
    return web.json_response({"data": [{"id": "m"}]})


@pytest.fixture
async def start_engine() -> AsyncIterator[Callable[..., Awaitable[FakeEngine]]]:
    """Start engines on free ports: `engine = await start_engine(running=2, completion="hang")`."""
    runners: list[web.AppRunner] = []

    async def start(**fields: object) -> FakeEngine:
        engine = FakeEngine(**fields)  # type: ignore[arg-type]
        app = web.Application()
        app.router.add_get("/metrics", engine.answer_metrics)
        app.router.add_get("/v1/models", answer_models)
        app.router.add_post("/v1/completions", engine.answer_completion)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return engine

    yield start
    for runner in runners:
        await runner.cleanup()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def ras_server(talk: Talk) -> AsyncIterator[str]:
    """Run a TCP server that answers with `talk`. Yield its HOST:PORT."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def ras_talk(answer: str, *, json_format: bool = True) -> Talk:
    """Behave as a RAS thread: greet, accept the settings, answer STATUS and close."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := (await reader.readline()).decode().strip().lower():
            if line.startswith("client protocol"):
                writer.write(b"SERVER PROTOCOL 2\n")
            elif line.startswith("set format") and not json_format:
                writer.write(b"ERROR: Unknown command set format json\n")
            elif line.startswith(("timeout", "set format")):
                writer.write(b"OK\n")
            elif line == "verbose status":
                writer.write(answer.encode())
                await writer.drain()
                return

    return talk


def process_state(pid: int) -> str:
    """Return the kernel's letter for the state of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def spawn(*argv: str, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, its output in a pipe."""
    return subprocess.Popen(argv, cwd=cwd, stdout=subprocess.PIPE, start_new_session=True)


def end(*processes: subprocess.Popen[bytes]) -> None:
    """End processes of a test, stopped ones too, with their groups."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait(timeout=10)
