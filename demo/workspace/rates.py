"""Slack's rate limits as a middleware of the Web API: tiers by the minute, and one message a second in a channel.

Tiers: docs.slack.dev/apis/web-api/rate-limits. Slack promises "N or more" calls a minute and allows short bursts; here
exactly N calls fit into any 60 s, and a channel takes a burst of 10 messages.
"""

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable

from demo.workspace.records import JsonObject
from demo.workspace.webapi.call import ApiCall, ApiError, Handler

PER_MINUTE = {1: 1, 2: 20, 3: 50, 4: 100}
TIERS: dict[str, int] = {
    "chat.delete": 3,
    "chat.postEphemeral": 4,
    "chat.update": 3,
    "conversations.archive": 2,
    "conversations.create": 2,
    "conversations.history": 3,
    "conversations.info": 3,
    "conversations.invite": 3,
    "conversations.join": 3,
    "conversations.list": 2,
    "conversations.members": 4,
    "conversations.open": 3,
    "conversations.replies": 3,
    "conversations.setTopic": 2,
    "files.completeUploadExternal": 4,
    "files.getUploadURLExternal": 4,
    "files.info": 4,
    "pins.add": 2,
    "reactions.add": 3,
    "usergroups.list": 2,
    "usergroups.users.list": 2,
    "users.info": 4,
    "users.list": 2,
    "views.open": 4,
    "views.publish": 4,
    "views.push": 4,
    "views.update": 4,
}
"""The tier of each method; a method that is not here has no limit, as `auth.test` and `chat.getPermalink`."""
MESSAGES_PER_S = 1.0
MESSAGE_BURST = 10


class RateLimits:
    """Refuses calls above their rate with 429, `ratelimited` and `Retry-After`. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: defaultdict[str, deque[float]] = defaultdict(deque)
        self._posts: dict[str, tuple[float, float]] = {}

    async def __call__(self, call: ApiCall, handler: Handler) -> JsonObject:
        """Count the call and run it, or raise ApiError."""
        wait_s = self._wait_s(call)
        if wait_s > 0:
            seconds = max(1, math.ceil(wait_s))
            raise ApiError("ratelimited", status=429, headers={"Retry-After": str(seconds)})
        return await handler(call)

    def _wait_s(self, call: ApiCall) -> float:
        now = self._clock()
        if call.method == "chat.postMessage":
            return self._post(call.text("channel"), now)
        tier = TIERS.get(call.method)
        if tier is None:
            return 0.0
        calls = self._calls[call.method]
        while calls and calls[0] <= now - 60:
            calls.popleft()
        if len(calls) >= PER_MINUTE[tier]:
            return calls[0] + 60 - now
        calls.append(now)
        return 0.0

    def _post(self, channel: str, now: float) -> float:
        """Take one message out of the channel's bucket, or return how long it takes until it has one."""
        at, left = self._posts.get(channel, (now, float(MESSAGE_BURST)))
        left = min(MESSAGE_BURST, left + (now - at) * MESSAGES_PER_S)
        if left < 1:
            self._posts[channel] = (now, left)
            return (1 - left) / MESSAGES_PER_S
        self._posts[channel] = (now, left - 1)
        return 0.0
