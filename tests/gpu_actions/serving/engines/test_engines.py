"""Engine adapters against small real HTTP servers that answer well, badly, late or not at all."""

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from gpu_actions.config.host import EngineConfig
from gpu_actions.serving.engines.profile import profile_folder, traces_since
from gpu_actions.serving.interfaces import Engine, EngineError
from gpu_actions.serving.registry import ENGINES, build_engine
from gpu_actions.system.clock import boot_clock_s
from tests.ports import free_port

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[..., Awaitable[Engine]]


def chunk(text: str = "", **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text, "index": 0, **more}]}).encode() + b"\n\n"


def usage(tokens: int) -> bytes:
    return b"data: " + json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
GOOD = (chunk("Hello"), chunk(" you", finish_reason="length"), usage(2), DONE)


def streaming(*parts: bytes, delay_s: float = 0, cut: bool = False) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(delay_s)
        if cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    return handle


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve handlers by path and return the adapter for them. `port` fixes the port, for servers that start late."""
    runners: list[web.AppRunner] = []

    async def start(
        routes: dict[str, Handler] | None = None, *, port: int | None = None, **settings: Any
    ) -> Engine:
        port = port or free_port()
        if routes is not None:
            app = web.Application()
            for path, handler in routes.items():
                app.router.add_route("*", path, handler)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            runners.append(runner)
        return build_engine(
            EngineConfig.model_validate(
                {"kind": "vllm", "url": f"http://127.0.0.1:{port}/", "model": "m", **settings}
            )
        )

    yield start
    for runner in runners:
        await runner.cleanup()


def completions(handler: Handler) -> dict[str, Handler]:
    return {"/v1/completions": handler}


async def test_a_whole_stream_is_a_completion_with_its_times(serve: Serve) -> None:
    engine = await serve(completions(streaming(*GOOD, delay_s=0.05)))
    completion = await engine.complete("hi", max_tokens=2, timeout_s=5)
    assert (completion.text, completion.completion_tokens, completion.finish_reason) == (
        "Hello you",
        2,
        "length",
    )
    assert 0 < completion.ttft_ms < completion.e2e_ms
    assert completion.e2e_ms >= 150


async def test_the_request_asks_for_a_stream_with_usage_and_has_the_key(serve: Serve) -> None:
    seen: dict[str, Any] = {}

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.update(await request.json(), authorization=request.headers.get("Authorization"))
        return await streaming(*GOOD)(request)

    engine = await serve(completions(handle), api_key="sk-test")
    await engine.complete("hi", max_tokens=2, timeout_s=5)
    assert seen == {
        "model": "m",
        "prompt": "hi",
        "max_tokens": 2,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "authorization": "Bearer sk-test",
    }


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (streaming(*GOOD[:-1]), r"without \[DONE\]"),
        (streaming(chunk("Hel"), cut=True), "failed|DONE"),
        (streaming(chunk("a"), b'data: {"error": {"message": "CUDA error"}}\n\n', DONE), "CUDA error"),
        (streaming(chunk("a"), chunk("b"), usage(2), DONE), "reason None"),
        (streaming(chunk("a", finish_reason="abort"), usage(1), DONE), "abort"),
        (
            streaming(*[chunk() for _ in range(12)], chunk(finish_reason="length"), usage(13), DONE),
            "13 tokens",
        ),
        (streaming(chunk(finish_reason="stop"), usage(0), DONE), "without generating"),
        (streaming(chunk("abc", finish_reason="stop"), usage(99), DONE), "99 tokens, but 20"),
        (streaming(b"data: <html>\n\n"), "not JSON"),
        (streaming(DONE), "reason None"),
    ],
    ids=[
        "no-done",
        "cut",
        "error-event",
        "no-reason",
        "abort",
        "empty",
        "zero",
        "too-many",
        "html",
        "nothing",
    ],
)
async def test_an_answer_that_is_incomplete_or_malformed_is_an_error(
    serve: Serve, handler: Handler, said: str
) -> None:
    engine = await serve(completions(handler))
    with pytest.raises(EngineError, match=said):
        await engine.complete("hi", max_tokens=20, timeout_s=5)


async def test_a_token_that_decodes_to_nothing_is_still_a_token(serve: Serve) -> None:
    engine = await serve(completions(streaming(chunk(finish_reason="length"), usage(1), DONE)))
    assert (await engine.complete("hi", max_tokens=1, timeout_s=5)).completion_tokens == 1


async def test_without_usage_the_chunks_are_counted(serve: Serve) -> None:
    engine = await serve(completions(streaming(chunk("a"), chunk("b", finish_reason="stop"), DONE)))
    assert (await engine.complete("hi", max_tokens=5, timeout_s=5)).completion_tokens == 2


async def test_a_refusal_names_url_status_and_reason(serve: Serve) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "queue is full"}}, status=503)

    engine = await serve(completions(refuse))
    with pytest.raises(EngineError, match=r"/v1/completions answered 503: .*queue is full"):
        await engine.complete("hi", max_tokens=2, timeout_s=5)


async def test_an_answer_that_is_not_streamed_is_an_error(serve: Serve) -> None:
    async def plain(_: web.Request) -> web.Response:
        return web.json_response({"choices": [{"text": "x"}]})

    engine = await serve(completions(plain))
    with pytest.raises(EngineError, match="application/json to a streamed request"):
        await engine.complete("hi", max_tokens=2, timeout_s=5)


async def test_a_hanging_engine_is_an_error_at_the_timeout(serve: Serve) -> None:
    engine = await serve(completions(streaming(chunk("a"), delay_s=30)))
    begun = time.monotonic()
    with pytest.raises(EngineError, match=r"no full answer within 0\.3 s"):
        await engine.complete("hi", max_tokens=2, timeout_s=0.3)
    assert time.monotonic() - begun < 3


async def test_an_absent_engine_is_an_error_and_not_live(serve: Serve) -> None:
    engine = await serve()
    assert not await engine.is_live()
    with pytest.raises(EngineError, match=r"127\.0\.0\.1"):
        await engine.metrics()


async def test_live_means_that_health_answers_200(serve: Serve) -> None:
    async def fine(_: web.Request) -> web.Response:
        return web.Response()

    async def sick(_: web.Request) -> web.Response:
        return web.Response(status=503)

    assert await (await serve({"/health": fine})).is_live()
    assert not await (await serve({"/health": sick})).is_live()


async def test_metrics_include_the_time_and_the_missing_figures(serve: Serve) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n")

    metrics = await (await serve({"/metrics": page})).metrics()
    assert (metrics.running, metrics.waiting, metrics.generation_tokens) == (3, 1, None)
    assert abs(metrics.taken_at_s - boot_clock_s()) < 5
    assert "generation_tokens" in metrics.missing


async def test_a_metrics_page_that_is_not_metrics_is_an_error(serve: Serve) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="vllm:num_requests_running{ <html>")

    with pytest.raises(EngineError, match="did not return metrics"):
        await (await serve({"/metrics": page})).metrics()


async def test_sglang_without_metrics_names_the_flag(serve: Serve) -> None:
    with pytest.raises(EngineError, match="--enable-metrics"):
        await (await serve({}, kind="sglang")).metrics()


async def test_ready_is_reported_soon_after_the_first_token_is_possible(serve: Serve) -> None:
    port = free_port()
    engine = await serve(port=port)
    waiting = asyncio.create_task(engine.wait_ready(timeout_s=30))
    await asyncio.sleep(0.3)
    ready_from = time.monotonic()
    await serve(completions(streaming(*GOOD)), port=port)
    assert (await waiting).completion_tokens == 2
    assert time.monotonic() - ready_from < 1.0


async def test_waiting_for_a_dead_process_ends_at_once(serve: Serve) -> None:
    engine = await serve()
    asked = 0

    async def still_starting() -> bool:
        nonlocal asked
        asked += 1
        return asked < 3

    begun = time.monotonic()
    with pytest.raises(EngineError, match="process is gone"):
        await engine.wait_ready(timeout_s=60, still_starting=still_starting)
    assert time.monotonic() - begun < 5


async def test_waiting_ends_at_its_deadline_with_the_last_reason(serve: Serve) -> None:
    with pytest.raises(EngineError, match=r"not ready within 0 s: .*Cannot connect"):
        await (await serve()).wait_ready(timeout_s=0.3)


async def test_a_wrong_model_name_does_not_wait_for_the_deadline(serve: Serve) -> None:
    async def unknown(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "The model `m` does not exist."}}, status=404)

    with pytest.raises(EngineError, match=r"refuses to serve: .*does not exist"):
        await (await serve(completions(unknown))).wait_ready(timeout_s=60)


def test_an_adapter_works_in_the_event_loop_of_any_thread() -> None:
    engine = build_engine(EngineConfig(kind="vllm", url=f"http://127.0.0.1:{free_port()}", model="m"))
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(asyncio.run(engine.is_live()))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [False] * 3


async def test_many_calls_leave_no_open_connection(serve: Serve) -> None:
    engine = await serve(completions(streaming(*GOOD)))
    for _ in range(30):
        await engine.complete("hi", max_tokens=2, timeout_s=5)
    port = int(engine.url.rsplit(":", 1)[1])
    mine = [
        connection
        for connection in psutil.Process().net_connections("tcp")
        if connection.raddr and connection.raddr[1] == port and connection.status == psutil.CONN_ESTABLISHED
    ]
    assert mine == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("vllm", "--profiler-config"),
        ("reference", "--profiler-dir"),
        ("sglang", "no /start_profile"),
        ("openai", "engine.kind"),
    ],
)
async def test_a_missing_profiler_names_what_to_set(serve: Serve, kind: str, said: str) -> None:
    engine = await serve({}, kind=kind)
    with pytest.raises(EngineError, match=said):
        await engine.start_profile(max_iterations=5)


async def test_profiles_start_with_their_limit_and_return_the_files_that_the_engine_names(
    serve: Serve,
) -> None:
    bodies: dict[str, Any] = {}

    async def start(request: web.Request) -> web.Response:
        bodies["start"] = await request.json()
        return web.json_response({"status": "profiling"})

    async def stop(_: web.Request) -> web.Response:
        return web.json_response({"files": ["/traces/rank0.json.gz"]})

    for kind, body in (
        ("reference", {"max_iterations": 7}),
        ("sglang", {"num_steps": 7, "activities": ["CPU", "GPU"]}),
    ):
        engine = await serve({"/start_profile": start, "/stop_profile": stop}, kind=kind)
        await engine.start_profile(max_iterations=7)
        assert bodies["start"] == body
        assert await engine.stop_profile() == (Path("/traces/rank0.json.gz"),)


async def test_traces_that_the_engine_does_not_name_are_found_through_its_process(
    serve: Serve, tmp_path: Path
) -> None:
    """The engine here is another process, since its trace folder is read from that process's environment."""
    old = tmp_path / "old.pt.trace.json.gz"
    old.touch()
    script = f"""
import http.server, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        if self.path == "/stop_profile":
            pathlib.Path({str(tmp_path)!r}, "new.pt.trace.json.gz").write_bytes(b"x")
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *args): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
    process = await asyncio.create_subprocess_exec(
        *("python3", "-c", script),
        stdout=asyncio.subprocess.PIPE,
        env={"VLLM_TORCH_PROFILER_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    try:
        assert process.stdout is not None
        engine = await serve(port=int(await process.stdout.readline()))
        early = time.time() - 3600
        os.utime(old, (early, early))
        await engine.start_profile(max_iterations=5)
        assert await engine.stop_profile() == (tmp_path / "new.pt.trace.json.gz",)
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize(
    ("argv", "environment", "expected"),
    [
        (["vllm", "serve", "--profiler-config", '{"torch_profiler_dir": "/a"}'], {}, "/a"),
        (["vllm", "serve", '--profiler-config={"torch_profiler_dir": "rel"}'], {}, "/cwd/rel"),
        (["vllm", "--profiler-config.torch_profiler_dir", "/c"], {}, "/c"),
        (["vllm", "--profiler-config.torch_profiler_dir=/d"], {}, "/d"),
        (["vllm"], {"VLLM_TORCH_PROFILER_DIR": "/e"}, "/e"),
        (["sglang"], {"SGLANG_TORCH_PROFILER_DIR": "/f"}, "/f"),
        (["vllm", "--profiler-config", "not json"], {}, None),
        (["vllm", "--profiler-config"], {}, None),
    ],
)
def test_the_trace_folder_is_read_from_arguments_or_environment(
    argv: list[str], environment: dict[str, str], expected: str | None
) -> None:
    folder = profile_folder(ENGINES[argv[0]].trace_folder, argv, environment, Path("/cwd"))
    assert folder == (None if expected is None else Path(expected))


def test_only_new_traces_are_returned_oldest_first(tmp_path: Path) -> None:
    for name, at in (("a.trace.json.gz", 100), ("b.pt.trace.json", 300), ("c.txt", 300)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    below = tmp_path / "run1"
    below.mkdir()
    (below / "d.trace.json.gz").touch()
    os.utime(below / "d.trace.json.gz", (200, 200))
    assert [path.name for path in traces_since(tmp_path, 150)] == ["d.trace.json.gz", "b.pt.trace.json"]
