"""A load test as a step of the action: with the tier's key, ended by `stop` or `abort`, and its errors as a failed step."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gpu_actions.action import StepContext, StepFailed
from gpu_actions.loadtest.child import LoadTestBroken
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import LoadTestRefused

ASK_EVERY_S = 0.5
T = TypeVar("T")


async def run_until_stopped(
    context: StepContext, run: Callable[[LoadSpec, asyncio.Event], Awaitable[T]]
) -> T:
    """Call `run` with the step's spec and an event that a person's `stop` sets. Raises StepFailed if it cannot run."""
    tier = context.host.tiers[context.args["tier"]]
    spec = LoadSpec.model_validate({**context.args["spec"], "api_key": tier.config.engine.api_key})
    stop = asyncio.Event()

    async def listen() -> None:
        while not stop.is_set():
            if {"stop", "abort"} & set(await context.signals()):
                stop.set()
            await asyncio.sleep(ASK_EVERY_S)

    listener = asyncio.create_task(listen())
    try:
        return await run(spec, stop)
    except LoadTestRefused as error:
        raise StepFailed(
            f"the load test cannot run: {error}", next_action="correct the options or the host's settings"
        ) from error
    except LoadTestBroken as error:
        raise StepFailed(str(error), next_action="see the bot's log, then run it again") from error
    finally:
        listener.cancel()
