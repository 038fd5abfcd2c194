"""The demonstration's control panel, used by the page's "Break something" and by `gpu-oncall demo break`.

A tiny HTTP service on loopback: GET lists the buttons, POST presses one.
"""

from pathlib import Path

import aiohttp
from aiohttp import web

from demo.host.layout import read_layout
from demo.host.traffic import Traffic
from gpu_actions.drill.faults import FAULTS, Breaker


def panel_app(breaker: Breaker, traffic: Traffic) -> web.Application:
    """Build the panel's web application."""

    async def buttons(_: web.Request) -> web.Response:
        broken = breaker.broken
        shown = [
            {
                "id": fault.id,
                "label": fault.label,
                "help": fault.help,
                "style": "danger",
                "active": fault.id == broken,
            }
            for fault in FAULTS
        ]
        shown.append({"id": "mend", "label": "Mend it", "help": "remove the fault", "style": "primary"})
        shown.append({"id": "visitors", "label": "How are the visitors?", "help": traffic.summary()})
        return web.json_response(shown)

    async def press_button(request: web.Request) -> web.Response:
        button = request.match_info["button"]
        try:
            if button == "visitors":
                text = traffic.summary()
            elif button == "mend":
                text = await breaker.mend()
            else:
                text = await breaker.break_(button)
        except ValueError as error:
            return web.json_response({"text": str(error)}, status=404)
        return web.json_response({"text": text})

    app = web.Application()
    app.router.add_get("/panel", buttons)
    app.router.add_post("/panel/{button}", press_button)
    return app


async def press(state_dir: Path, button: str) -> str:
    """Press a button of the running demonstration. Return its answer.

    Raises ValueError for an unknown button, and when no demonstration is running there.
    """
    not_running = f"no demonstration is running in {state_dir}: start one with `make demo`"
    try:
        layout = read_layout(state_dir)
    except FileNotFoundError:
        raise ValueError(not_running) from None
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{layout.panel_url}/{button}") as response,
        ):
            answer = await response.json()
    except aiohttp.ClientConnectionError:
        raise ValueError(not_running) from None
    if response.status != 200:
        raise ValueError(answer["text"])
    return str(answer["text"])
