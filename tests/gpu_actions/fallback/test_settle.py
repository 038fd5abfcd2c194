"""The clean-up under load and with broken parts: it tries everything and reports the real state."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpu_actions.action import StepContext
from gpu_actions.fallback.action import FallbackArguments, lay_out
from gpu_actions.fallback.cleanup import Cleanup, ServingState
from gpu_actions.fallback.gpus import Candidate, Choice
from gpu_actions.fallback.settle import settle
from gpu_actions.host import Host, Tier
from gpu_actions.serving.interfaces import RouterError, UnitError
from gpu_actions.tier.preflight import gather_facts
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import Site


class Broken:
    """A driver whose `calls` fail and that behaves like the real one otherwise."""

    def __init__(self, driver: Any, error: Exception, *calls: str) -> None:
        self.driver, self.error, self.calls = driver, error, calls

    def __getattr__(self, name: str) -> Any:
        if name not in self.calls:
            return getattr(self.driver, name)

        async def fail(*args: object, **options: object) -> None:
            raise self.error

        return fail


@contextmanager
def broken(owner: Tier | Host, field: str, error: Exception, *calls: str) -> Iterator[None]:
    """Break some calls of a tier's unit or a host's router within the block."""
    driver = getattr(owner, field)
    object.__setattr__(owner, field, Broken(driver, error, *calls))
    try:
        yield
    finally:
        object.__setattr__(owner, field, driver)


NO_ANSWER = UnitError("the service manager does not answer")


async def settling(site: Site, workdir: str = "fb-1") -> StepContext:
    """Return the context of a fallback's clean-up."""
    facts = await gather_facts(site.host)
    alone = Candidate(gpu=None, reason="CPU", beside=True)
    plan = lay_out(site.host, facts, Choice(candidates=(alone,)), FallbackArguments())
    folder = site.folder / workdir
    folder.mkdir()
    return StepContext(run_id="fb-1", host=site.host, step=plan.compensation[0], outputs={}, workdir=folder)


async def test_one_broken_unit_does_not_end_the_clean_up(site_with: MakeSite) -> None:
    site = await site_with()
    context = await settling(site)
    await site.host.router.apply_back_pressure("fallback")
    await site.host.router.set_weight("fallback", 30)
    with broken(site.host.fallback, "unit", NO_ANSWER, "state", "stop"):
        result = await settle(context)
    assert result.data["state"] == "tp_serving"
    assert result.warning
    assert "stop the fallback: the service manager does not answer" in result.summary
    assert await site.weights() == {"tp": (100, "ready"), "fallback": (0, "ready")}
    assert site.host.router.limited() == set()  # type: ignore[attr-defined]


async def test_a_tier_whose_unit_cannot_be_read_is_judged_by_its_tokens(site_with: MakeSite) -> None:
    site = await site_with()
    context = await settling(site)
    with broken(site.host.tp, "unit", NO_ANSWER, "state"):
        result = await settle(context)
    assert result.data["state"] == "tp_serving"
    assert "NOTHING IS SERVING" not in result.summary
    await site.through.complete("after", max_tokens=2, timeout_s=10)


async def test_a_saturated_router_does_not_mean_that_nothing_serves(site_with: MakeSite) -> None:
    site = await site_with(
        router={
            "back_pressure": {"max_concurrent": 2, "long_share": 1, "max_queue": 1, "queue_timeout_s": 60}
        }
    )
    await site.run(await site.plan(skip_validation=True))
    (site.folder / "slow_fallback").write_text("0.3")
    async with site.traffic(clients=4, tokens=12, timeout_s=60):
        while not (await site.host.router.server("fallback")).queued:
            await asyncio.sleep(0.05)
        result = await Cleanup().result(site.host, ServingState.FALLBACK)
        (site.folder / "slow_fallback").write_text("0.005")
    assert result.data["state"] == "fallback_serving"
    assert "NOTHING IS SERVING" not in result.summary
    assert "saturated" in result.summary


async def test_a_tier_keeps_running_if_its_traffic_cannot_be_moved(site_with: MakeSite) -> None:
    site = await site_with()
    await site.host.fallback.unit.start()
    await site.host.fallback.engine.wait_ready(timeout_s=30)
    context = await settling(site)
    with broken(site.host, "router", RouterError("permission denied"), "shift"):
        result = await settle(context)
    assert "route to tp: permission denied" in result.summary
    assert "the fallback runs" in result.summary
    assert (await site.host.fallback.unit.state()).active
