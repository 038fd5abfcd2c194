"""The Web API below `/api/`. A method is one function, registered under its Slack name; modules follow Slack's families."""

from collections.abc import Sequence
from functools import partial

from aiohttp import web

from demo.workspace.records import JsonObject
from demo.workspace.socket_mode import SocketMode
from demo.workspace.state import State
from demo.workspace.trigger_ids import TriggerIds
from demo.workspace.webapi import (  # noqa: F401  each module registers its methods
    apps,
    bookmarks,
    chat,
    conversations,
    files,
    pins,
    reactions,
    users,
    views,
)
from demo.workspace.webapi.call import (
    METHODS,
    ApiCall,
    ApiError,
    Handler,
    Method,
    Middleware,
    read_arguments,
)

__all__ = ["METHODS", "ApiCall", "ApiError", "Handler", "Middleware", "WebApi"]


class WebApi:
    """Serves calls: reads the arguments, checks token and scopes, runs the method inside the middlewares."""

    def __init__(
        self,
        *,
        state: State,
        socket_mode: SocketMode,
        triggers: TriggerIds,
        bot_token: str,
        app_token: str,
        middlewares: Sequence[Middleware] = (),
    ) -> None:
        self._state = state
        self._socket_mode = socket_mode
        self._triggers = triggers
        self._token_kinds = {bot_token: "bot", app_token: "app"}
        self.middlewares: list[Middleware] = list(middlewares)

    async def handle(self, request: web.Request) -> web.Response:
        """Serve `/api/{method}`."""
        method = METHODS.get(request.match_info["method"])
        headers = {
            "x-oauth-scopes": ",".join(self._state.team.app.scopes),
            "x-slack-req-id": self._state.new_id("R"),
        }
        if method is not None and method.scopes:
            headers["x-accepted-oauth-scopes"] = ",".join(method.scopes)
        try:
            answer = await self._run(method, request)
        except ApiError as error:
            return web.json_response(error.body, status=error.status, headers=headers | error.headers)
        return web.json_response({"ok": True} | answer, headers=headers)

    async def _run(self, method: Method | None, request: web.Request) -> JsonObject:
        name = request.match_info["method"]
        if method is None:
            raise ApiError("unknown_method", f"this local workspace does not have {name}")
        arguments = await read_arguments(request)
        sent = str(arguments.pop("token", ""))
        token = request.headers.get("Authorization", "").removeprefix("Bearer ").strip() or sent
        self._check_token(method, token)
        handler = method.handler
        for middleware in reversed(self.middlewares):
            handler = partial(_wrapped, middleware, handler)
        return await handler(ApiCall(name, arguments, token, self._state, self._socket_mode, self._triggers))

    def _check_token(self, method: Method, token: str) -> None:
        if not method.tokens:
            return
        if not token:
            raise ApiError("not_authed")
        kind = self._token_kinds.get(token)
        if kind is None:
            raise ApiError("invalid_auth")
        if kind not in method.tokens:
            raise ApiError("not_allowed_token_type")
        provided = self._state.team.app.scopes
        if kind == "bot" and method.scopes and not set(method.scopes) & set(provided):
            scopes = {"needed": ",".join(method.scopes), "provided": ",".join(provided)}
            raise ApiError("missing_scope", fields=scopes)


async def _wrapped(middleware: Middleware, handler: Handler, call: ApiCall) -> JsonObject:
    return await middleware(call, handler)
