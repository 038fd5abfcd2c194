"""The Web API below `/api/`: one function a method, grouped in modules as Slack groups the names."""

import logging
from collections.abc import Sequence

from aiohttp import web

from demo.workspace.grants import Grants
from demo.workspace.socket_mode import SocketMode
from demo.workspace.state import State
from demo.workspace.webapi import chat, conversations, files, marks, people, views
from demo.workspace.webapi.call import ApiCall, ApiError, Handler, Middleware, read_arguments

METHODS: dict[str, Handler] = {
    **chat.METHODS,
    **conversations.METHODS,
    **files.METHODS,
    **marks.METHODS,
    **people.METHODS,
    **views.METHODS,
}
APP_LEVEL_METHODS = frozenset({"apps.connections.open"})
"""Methods that take the app-level token (`xapp-`) and no other."""
ANY_TOKEN_METHODS = frozenset({"apps.manifest.update"})
NO_TOKEN_METHODS = frozenset({"api.test"})

logger = logging.getLogger(__name__)

__all__ = ["METHODS", "ApiCall", "ApiError", "Handler", "Middleware", "WebApi"]


class WebApi:
    """Takes calls: reads arguments, checks the token, runs the method inside the middlewares, shapes the answer."""

    def __init__(
        self,
        *,
        state: State,
        socket_mode: SocketMode,
        grants: Grants,
        bot_token: str,
        app_token: str,
        middlewares: Sequence[Middleware] = (),
    ) -> None:
        self._state = state
        self._socket_mode = socket_mode
        self._grants = grants
        self._bot_token = bot_token
        self._app_token = app_token
        self.middlewares: list[Middleware] = list(middlewares)

    async def handle(self, request: web.Request) -> web.Response:
        """Serve `/api/{method}`."""
        headers = {
            "x-oauth-scopes": ",".join(self._state.seed.app.scopes),
            "x-slack-req-id": self._state.new_id("R"),
        }
        try:
            answer = await self._run(request)
        except ApiError as error:
            return web.json_response(error.as_json(), status=error.status, headers=headers | error.headers)
        return web.json_response({"ok": True} | answer, headers=headers)

    async def _run(self, request: web.Request) -> dict[str, object]:
        method = request.match_info["method"]
        handler = METHODS.get(method)
        if handler is None:
            raise ApiError("unknown_method", f"this local workspace does not know {method}")
        arguments = await read_arguments(request)
        header = request.headers.get("Authorization", "")
        token = header.removeprefix("Bearer ").strip() or str(arguments.pop("token", ""))
        arguments.pop("token", None)
        self._check_token(method, token)
        call = ApiCall(
            method=method,
            arguments=arguments,
            token=token,
            state=self._state,
            socket_mode=self._socket_mode,
            grants=self._grants,
        )
        for middleware in reversed(self.middlewares):
            handler = _wrapped(middleware, handler)
        return await handler(call)

    def _check_token(self, method: str, token: str) -> None:
        if method in NO_TOKEN_METHODS:
            return
        if not token:
            raise ApiError("not_authed")
        if token not in (self._bot_token, self._app_token):
            raise ApiError("invalid_auth")
        wanted = self._app_token if method in APP_LEVEL_METHODS else self._bot_token
        if token != wanted and method not in ANY_TOKEN_METHODS:
            raise ApiError("not_allowed_token_type")


def _wrapped(middleware: Middleware, handler: Handler) -> Handler:
    async def run(call: ApiCall) -> dict[str, object]:
        return await middleware(call, handler)

    return run
