"""Rate limits: N calls of a tier in any minute, one message a second in a channel after a burst, and when to try again."""

import pytest

from demo.workspace.rates import RateLimits
from demo.workspace.webapi import ApiCall, ApiError


class Limited:
    """Rate limits with a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self._limits = RateLimits(clock=lambda: self.now)

    async def wait_s(self, method: str, **arguments: str) -> int:
        """Return 0 for a call that is accepted, else the seconds of Retry-After."""

        async def handler(call: ApiCall) -> dict[str, object]:
            return {}

        call = ApiCall(method, dict(arguments), None, None, None)  # type: ignore[arg-type]
        try:
            await self._limits(call, handler)
        except ApiError as error:
            assert (error.status, error.body["error"]) == (429, "ratelimited")
            return int(error.headers["Retry-After"])
        return 0


@pytest.mark.parametrize(
    ("method", "a_minute"), [("usergroups.list", 20), ("chat.update", 50), ("users.info", 100)]
)
async def test_a_tier_takes_its_calls_in_any_minute_and_says_when_to_try_again(
    method: str, a_minute: int
) -> None:
    limited = Limited()
    assert [await limited.wait_s(method) for _ in range(a_minute)] == [0] * a_minute
    limited.now = 15.0
    assert await limited.wait_s(method) == 45
    limited.now = 60.0
    assert await limited.wait_s(method) == 0


async def test_a_channel_takes_a_burst_and_then_one_message_a_second() -> None:
    limited = Limited()
    assert [await limited.wait_s("chat.postMessage", channel="C1") for _ in range(11)] == [0] * 10 + [1]
    assert await limited.wait_s("chat.postMessage", channel="C2") == 0
    limited.now = 2.0
    assert [await limited.wait_s("chat.postMessage", channel="C1") for _ in range(3)] == [0, 0, 1]


async def test_methods_without_a_tier_have_no_limit() -> None:
    limited = Limited()
    assert [await limited.wait_s("auth.test") for _ in range(500)] == [0] * 500
