"""The Web API below `/api/`. A method is one function, registered under its Slack name; modules follow Slack's families."""

import importlib
import pkgutil
from collections.abc import Sequence
from email.utils import formatdate
from functools import partial

from aiohttp import web

from demo.workspace.faults import LostAnswer
from demo.workspace.open_interactions import OpenInteractions
from demo.workspace.records import JsonObject
from demo.workspace.socket_mode import SocketMode
from demo.workspace.state import State
from demo.workspace.view_checks import ViewError
from demo.workspace.webapi.call import METHODS, ApiCall, ApiError, Handler, Middleware, read_arguments

__all__ = ["METHODS", "ApiCall", "ApiError", "Handler", "Middleware", "WebApi"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)  # registers its methods


class WebApi:
    """Serves calls: reads the arguments, checks token and scopes, runs the method inside the middlewares.

    `tokens` holds the kind (`bot` or `app`) of each token.
    """

    def __init__(
        self,
        tokens: dict[str, str],
        middlewares: Sequence[Middleware],
        state: State,
        socket_mode: SocketMode,
        interactions: OpenInteractions,
    ) -> None:
        self._tokens = tokens
        self.middlewares = list(middlewares)
        self._state = state
        self._socket_mode = socket_mode
        self._interactions = interactions

    async def handle(self, request: web.Request) -> web.Response:
        """Serve `/api/{method}`."""
        headers = {
            "x-oauth-scopes": ",".join(self._state.team.app.scopes),
            "x-slack-req-id": self._state.new_id("R"),
            "Date": formatdate(self._state.clock(), usegmt=True),
        }
        try:
            answer = await self._run(request)
        except LostAnswer:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)
        except ViewError as refusal:
            error = ApiError(refusal.code, *refusal.messages)
            return web.json_response(error.body, headers=headers)
        except ApiError as error:
            return web.json_response(error.body, status=error.status, headers=headers | error.headers)
        return web.json_response({"ok": True} | answer, headers=headers)

    async def _run(self, request: web.Request) -> JsonObject:
        name = request.match_info["method"]
        method = METHODS.get(name)
        if method is None:
            raise ApiError("unknown_method", f"this local workspace does not have {name}")
        arguments = await read_arguments(request)
        sent = str(arguments.pop("token", ""))
        token = request.headers.get("Authorization", "").removeprefix("Bearer ").strip() or sent
        if method.tokens:
            self._check_token(token, method.tokens, method.scopes)
        handler = method.handler
        for middleware in reversed(self.middlewares):
            handler = partial(_wrapped, middleware, handler)
        return await handler(ApiCall(name, arguments, self._state, self._socket_mode, self._interactions))

    def _check_token(self, token: str, accepted: tuple[str, ...], scopes: tuple[str, ...]) -> None:
        if not token:
            raise ApiError("not_authed")
        kind = self._tokens.get(token)
        if kind is None:
            raise ApiError("invalid_auth")
        if kind not in accepted:
            raise ApiError("not_allowed_token_type")
        provided = self._state.team.app.scopes
        if scopes and not set(scopes) & set(provided):
            fields = {"needed": ",".join(scopes), "provided": ",".join(provided)}
            raise ApiError("missing_scope", fields=fields)


async def _wrapped(middleware: Middleware, handler: Handler, call: ApiCall) -> JsonObject:
    return await middleware(call, handler)
