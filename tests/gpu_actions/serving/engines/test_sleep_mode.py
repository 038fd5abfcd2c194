"""Sleep mode as the engines' own sources have it: the calls, what they need, and what an engine does not say.

vLLM (`entrypoints/serve/sleep/api_router.py`): `POST /sleep` takes the level as a query parameter, and the pages exist in its
development mode only. SGLang (`srt/entrypoints/http_server.py`, `srt/managers/io_struct.py`): both calls need a JSON object, in
which no `tags` means weights, KV cache and CUDA graphs; no page says whether it sleeps.
"""

from typing import Any

import pytest
from aiohttp import web

from gpu_actions.config.host import TierConfig
from gpu_actions.serving.interfaces import EngineError
from gpu_actions.standby.action import flags_missing
from tests.gpu_actions.serving.engines.test_engines import Serve, serve, streaming

__all__ = ["serve"]

CALLS = {
    "vllm": [("/sleep", {"level": "1"}), ("/is_sleeping", {}), ("/wake_up", {})],
    "sglang": [("/release_memory_occupation", {}), ("/resume_memory_occupation", {})],
    "reference": [("/sleep", {}), ("/is_sleeping", {}), ("/wake_up", {})],
}
HINTS = {
    "vllm": "VLLM_SERVER_DEV_MODE=1",
    "sglang": "--enable-memory-saver --enable-weights-cpu-backup",
    "reference": "--enable-sleep-mode",
}


@pytest.mark.parametrize("kind", CALLS)
async def test_an_engine_is_put_to_sleep_and_woken_with_its_own_calls(serve: Serve, kind: str) -> None:
    seen: list[tuple[str, dict[str, str]]] = []

    async def take(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, dict(request.query)))
        if request.path == "/is_sleeping":
            return web.json_response({"is_sleeping": True})
        assert request.method == "POST"
        if await request.json() != {}:  # FastAPI answers 422 to a call without its object
            raise web.HTTPUnprocessableEntity
        return web.Response(text="null" if kind == "sglang" else "")

    engine = await serve({path: take for path, _ in CALLS[kind]}, kind=kind)
    await engine.sleep(timeout_s=2)
    assert await engine.is_asleep() is (None if kind == "sglang" else True)
    await engine.wake(timeout_s=2)
    assert seen == CALLS[kind]


@pytest.mark.parametrize("kind", CALLS)
async def test_an_engine_without_its_pages_says_how_to_enable_sleep_mode(serve: Serve, kind: str) -> None:
    engine = await serve({"/health": streaming()}, kind=kind)
    with pytest.raises(EngineError, match=HINTS[kind]):
        await engine.sleep(timeout_s=2)
    assert await engine.is_asleep() is None


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        (["--enable-memory-saver", "--enable-weights-cpu-backup"], ""),
        (["--enable-memory-saver=true", "--enable-weights-cpu-backup=true"], ""),
        (["--enable-memory-saver"], "unit.argv does not name --enable-weights-cpu-backup: "),
        ([], "unit.argv does not name --enable-memory-saver, --enable-weights-cpu-backup: "),
    ],
)
def test_a_command_line_without_a_flag_that_goes_unnoticed_is_warned_about(
    flags: list[str], missing: str
) -> None:
    def tier(**changes: Any) -> TierConfig:
        return TierConfig.model_validate(
            {
                "engine": {"kind": "sglang", "url": "http://127.0.0.1:9", "model": "m"},
                "unit": {"driver": "process", "argv": ["python3", "-m", "sglang.launch_server", *flags]},
                "server": "fallback",
                "standby": "sleep",
                **changes,
            }
        )

    warnings = flags_missing(tier())
    assert [text.startswith(missing) for text in warnings] == ([True] if missing else [])
    assert flags_missing(tier(standby="resident")) == ()
    assert flags_missing(tier(unit={"driver": "systemd", "name": "fallback.service"})) == ()
