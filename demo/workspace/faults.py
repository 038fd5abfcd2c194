"""Faults of Slack on switches: what a Web API call and a Socket Mode connection do on a bad day. All are off at first."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from demo.workspace.records import JsonObject

if TYPE_CHECKING:
    from demo.workspace.webapi.call import ApiCall, ApiError, Handler


class LostAnswer(Exception):
    """Raised after a call was carried out, to break the connection before its answer is sent."""


@dataclass(slots=True)
class Faults:
    """The switches. Set an attribute to break the workspace, set it back to mend it.

    Web API, by method (`*` for all): `errors` answers with an error (429, 5xx, `token_revoked`) and does nothing, `lost`
    carries so many calls out and breaks the connection instead of answering, `slow_s` answers late.

    Socket Mode: `refuse_socket` is the status of a refused handshake, `silent_socket` accepts and then sends and reads
    nothing, `deaf` answers pings but delivers nothing, `duplicate` sends each envelope twice, `late_s` sends it late.

    `clock_s` is how far Slack's clock, which stamps messages, is ahead of this machine's; negative is behind.
    """

    errors: "dict[str, ApiError]" = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)
    slow_s: dict[str, float] = field(default_factory=dict)
    refuse_socket: int = 0
    silent_socket: bool = False
    deaf: bool = False
    duplicate: bool = False
    late_s: float = 0.0
    clock_s: float = 0.0

    async def __call__(self, call: "ApiCall", handler: "Handler") -> JsonObject:
        """Run a call of the Web API with its faults; a middleware."""
        method = call.method
        await asyncio.sleep(self.slow_s.get(method, self.slow_s.get("*", 0.0)))
        error = self.errors.get(method, self.errors.get("*"))
        if error is not None:
            raise error
        answer = await handler(call)
        if self.lost[method] > 0:
            self.lost[method] -= 1
            raise LostAnswer
        return answer
