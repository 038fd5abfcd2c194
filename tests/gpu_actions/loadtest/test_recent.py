"""The recent traffic as a load: read from HAProxy's record and the engine's histograms, sent, mirrored, and given way."""

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from bot.settings.watch import MonitorSettings
from bot.watch.monitor_kinds import MONITOR_KINDS
from bot.watch.monitor_memory import MonitorMemory
from bot.watch.monitors import Monitors
from gpu_actions.action import PlanRefused
from gpu_actions.config.policies import LoadPolicy, LoadTestSettings
from gpu_actions.loadtest import mirror as mirroring
from gpu_actions.loadtest import recent as recent_traffic
from gpu_actions.loadtest.action import SPEC
from gpu_actions.loadtest.baseline import Baseline, BaselineStore
from gpu_actions.loadtest.mirror import Mirrored, MirrorSkipped, highest_rate, mirror
from gpu_actions.loadtest.recent import (
    RecentTraffic,
    RecentUnknown,
    lengths_of,
    read_recent,
    remember_lengths,
)
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.models import VerdictKind
from gpu_actions.serving.interfaces import TokenHistogram
from tests.bot.toys import store_of
from tests.bot.watch.test_monitors import People
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.fallback.test_reference import reference
from tests.gpu_actions.site import Site, statuses, summary_of

MIRROR = next(kind for kind in MONITOR_KINDS if kind.name == "mirror")


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let some seconds of traffic be enough: the router of a test has no ten minutes of record."""
    monkeypatch.setattr(recent_traffic, "SHORTEST_WINDOW_S", 1.0)


async def ask(session: aiohttp.ClientSession, site: Site, *, prompt: int, tokens: int) -> int:
    body = {"model": "m", "prompt": "x" * prompt, "max_tokens": tokens, "stream": True, "ignore_eos": True}
    async with session.post(f"{site.host.router.url}/v1/completions", json=body) as answer:
        await answer.read()
        return answer.status


@contextlib.asynccontextmanager
async def traffic(
    site: Site, *, every_s: float, prompts: tuple[int, ...] = (20, 100), tokens: tuple[int, ...] = (4, 16)
) -> AsyncIterator[list[int]]:
    """Send a request every so many seconds, of each length in turn. Yields the statuses of those that ended; the last ones
    finish, unless that takes too long."""
    seen: list[int] = []
    is_over = asyncio.Event()

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        prompt, answer = prompts[number % len(prompts)], tokens[number % len(tokens)]
        seen.append(await ask(session, site, prompt=prompt, tokens=answer))

    async def send(session: aiohttp.ClientSession) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(10_000):
                group.create_task(one(session, number))
                await asyncio.sleep(every_s)
                if is_over.is_set():
                    return

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        sending = asyncio.create_task(send(session))
        try:
            yield seen
        finally:
            is_over.set()
            await asyncio.wait({sending}, timeout=5)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ExceptionGroup):
                await sending


async def until(condition: Callable[[], bool], *, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("counts", "total"),
    [
        ((0, 10, 10, 10, 10), 640),
        ((0, 0, 30, 60, 60), 9000),
        ((5, 5, 5, 5, 100), 120_000),
        ((1, 1, 1, 1, 1), 1),
    ],
)
def test_lengths_have_the_mean_of_the_histogram_and_rise(counts: tuple[float, ...], total: float) -> None:
    histogram = TokenHistogram(
        bounds_tokens=(10, 100, 200, 1000, math.inf), counts=counts, total_tokens=total
    )
    lengths = lengths_of(histogram)
    assert list(lengths) == sorted(lengths)
    assert sum(lengths) / len(lengths) == pytest.approx(total / counts[-1], rel=0.02, abs=0.5)


async def test_recent_traffic_through_haproxy_to_the_reference_engine_is_read_without_our_own_requests_and_sent_again(
    site_with: MakeSite,
) -> None:
    site = await site_with(tp_engine=reference("--tensor-parallel-size", "1"))
    for _ in range(3):  # of another time: earlier than the window
        await site.through.complete("y" * 400, max_tokens=64, timeout_s=20)
    await remember_lengths(site.host)
    began_s = time.time()
    async with traffic(site, every_s=0.05) as seen:
        await until(lambda: len(seen) >= 60)
    assert set(seen) == {200}
    await asyncio.sleep(max(0.0, began_s + 1.2 - time.time()))
    recent = await read_recent(site.host, "tp", window_s=time.time() - began_s)
    assert recent.requests == len(seen)
    assert recent.notes == ()
    assert recent.requests_per_s == pytest.approx(recent.requests / (recent.until_s - recent.since_s))
    assert sum(recent.prompt_lengths) / 10 == pytest.approx(60, rel=0.1)
    assert sum(recent.answer_lengths) / 10 == pytest.approx(10, rel=0.1)
    assert recent.prompt_lengths[0] < 30 < 60 < recent.prompt_lengths[-1]
    assert recent.e2e_per_token_ms
    plan = await site.plan(SPEC, workload="recent", duration=2, qps=10)
    spec = LoadSpec.model_validate(plan.steps[0].args["spec"])
    assert len(spec.prompt_lengths) == len(spec.answer_lengths) == 10
    assert spec.slo_e2e_per_token_ms == pytest.approx(3 * recent.e2e_per_token_ms, rel=0.5)
    assert any(line.startswith("traffic of the last") for line in plan.steps[0].details)
    end = await site.run(plan)
    assert statuses(end)[0] in (("load", "done"), ("load", "warning")), "a busy machine may pass the limits"
    assert "20 of 20 requests served" in summary_of(end, "load")


async def test_the_caps_of_the_host_hold_for_recent_traffic_and_too_little_of_it_is_refused(
    site_with: MakeSite,
) -> None:
    site = await site_with()
    with pytest.raises(PlanRefused, match=r"workload = recent: .*(only \d+ requests of clients|not known)"):
        await site.plan(SPEC, workload="recent")
    settings = LoadTestSettings(max_qps=5)
    config = site.host.config.model_copy(update={"loadtest": settings})
    site.host = dataclasses.replace(site.host, config=config)
    async with traffic(site, every_s=0.02) as seen:
        await until(lambda: len(seen) >= 100)
    plan = await site.plan(SPEC, workload="recent")
    assert plan.steps[0].args["spec"]["target_qps"] == 5
    assert any("lowered from" in line and "the cap of test" in line for line in plan.steps[0].details)
    with pytest.raises(PlanRefused, match="above the cap"):
        await site.plan(SPEC, workload="recent", qps=6)


def mirrored(site: Site, *, seconds: float = 2) -> Site:
    """Let the site's host mirror half of its traffic for some seconds, and keep baselines."""
    chosen = LoadTestSettings.model_construct(
        max_qps=None,
        max_duration_s=None,
        profiles={},
        mirror_share_percent=50,
        mirror_duration_s=seconds,
    )
    site.host = dataclasses.replace(
        site.host,
        baselines_dir=site.folder / "baselines",
        config=site.host.config.model_copy(
            update={"loadtest": chosen, "load": LoadPolicy(slo_e2e_per_token_ms=500)}
        ),
    )
    return site


async def measured(site: Site) -> Mirrored:
    """Return a mirrored load. A busy machine may spoil some."""
    for _ in range(8):
        with contextlib.suppress(MirrorSkipped):
            return await mirror(site.host)
    raise AssertionError("no mirrored load was measured")


@pytest.mark.heavy
async def test_a_mirrored_load_learns_its_baseline_and_a_slower_engine_raises_an_alert(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring, "LEARNED_RUNS", 3)
    monkeypatch.setattr(mirroring, "ALIKE", 3.0)  # a busy machine's traffic is uneven
    site = mirrored(await site_with())
    store, people = store_of(site.folder), People()
    chosen = MonitorSettings(mirror_period_s=900)
    monitors = Monitors(
        chosen, store=store, hosts=lambda _: site.host, alerts=people, memory=MonitorMemory(store, chosen)  # type: ignore[arg-type]
    )  # fmt: skip
    async with traffic(site, every_s=0.04) as seen:
        await until(lambda: len(seen) >= 60)
        learned = [await measured(site) for _ in range(3)]
        assert [one.verdict.verdict for one in learned] == [VerdictKind.HEALTHY] * 3
        assert "run 1 of 3" in learned[0].verdict.summary
        assert "recorded the baseline mirror-test-1" in learned[2].verdict.summary
        baseline = BaselineStore(site.folder / "baselines").get("mirror-test-1")
        assert isinstance(baseline, Baseline)
        assert baseline.workload.target_qps <= 12.5, "half of the 25 requests/s"
        assert len({one.result.workload.fingerprint for one in learned}) == 1
        (site.folder / "slow_tp").write_text("0.015")
        for _ in range(8):  # two readings, more if a busy machine spoils some
            await monitors.check("test", MIRROR)
            if people.alerts:
                break
    (alert,) = people.alerts
    assert (alert.cause, alert.source, alert.verdict) == (
        "serving_regression",
        "the mirrored load",
        VerdictKind.WATCH,
    )
    assert "the mirrored load regressed against mirror-test-1" in alert.reason
    assert set(seen) == {200}


@pytest.mark.parametrize("reason", ["traffic", "run"])
async def test_a_mirrored_load_gives_way_at_once_to_waiting_traffic_and_to_a_run(
    site_with: MakeSite, reason: str
) -> None:
    site = mirrored(await site_with(tp=["--slots", "8"] if reason == "traffic" else []), seconds=20)
    stop = False
    async with traffic(site, every_s=0.04, tokens=(4,)) as seen:
        await until(lambda: len(seen) >= 60)
        last = site.host.state_dir / "mirror" / "last"
        for _ in range(20):  # a busy machine may let a request wait before the load begins
            running = asyncio.create_task(mirror(site.host, must_stop=lambda: stop))
            await until(lambda task=running: task.done() or last.exists())  # type: ignore[misc]
            if last.exists():
                break
            assert isinstance(running.exception(), MirrorSkipped), running
        await asyncio.sleep(0.5)
        stopped_at = time.monotonic()
        if reason == "run":
            stop = True
        else:
            (site.folder / "slow_tp").write_text("0.5")  # the clients' own requests fill all places
        with pytest.raises(MirrorSkipped, match="gave way to"):
            await running
        # At most one question apart, half a second for the child to close its connections, and the machine's own delays.
        assert time.monotonic() - stopped_at < 6
        assert not list(last.parent.glob("mirror-test-*/*")), "what it measured until then counts for nothing"


async def test_no_mirrored_load_begins_while_requests_wait_or_without_traffic(site_with: MakeSite) -> None:
    site = mirrored(await site_with(tp=["--slots", "1"]))
    with pytest.raises(MirrorSkipped, match=r"only|not known"):
        await mirror(site.host)
    (site.folder / "slow_tp").write_text("0.3")
    async with traffic(site, every_s=0.02):
        await asyncio.sleep(0.5)
        with pytest.raises(MirrorSkipped, match="wait in the engine"):
            await mirror(site.host)


def traffic_of(rate: float, prompt: int = 50) -> RecentTraffic:
    lengths = tuple(prompt + n for n in range(10))
    return RecentTraffic(
        since_s=0, until_s=600, requests=round(600 * rate), requests_per_s=rate, prompt_lengths=lengths, answer_lengths=lengths
    )  # fmt: skip


async def test_the_rate_of_a_mirrored_load_is_a_share_of_the_capacity_and_under_the_cap(
    site_with: MakeSite,
) -> None:
    host = (await site_with(up=False)).host
    assert highest_rate(host, "tp", traffic_of(40)) == pytest.approx(2), (
        "5 % of the traffic, if no knee is known"
    )
    capped = host.config.model_copy(update={"loadtest": LoadTestSettings(max_qps=1, mirror_share_percent=50)})
    assert highest_rate(dataclasses.replace(host, config=capped), "tp", traffic_of(40)) == 1


async def test_traffic_of_another_hour_is_another_kind_and_the_oldest_kind_makes_room(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring, "KINDS", 2)
    site = mirrored(await site_with(up=False))
    folder = site.host.state_dir / "mirror"

    def kind(rate: float, prompt: int = 50) -> str:
        return mirroring._kind_of(site.host, "tp", traffic_of(rate, prompt), folder).name

    assert [kind(20), kind(24), kind(100), kind(21), kind(20, 500), kind(100)] == [
        "mirror-test-1",
        "mirror-test-1",
        "mirror-test-2",
        "mirror-test-1",
        "mirror-test-3",
        "mirror-test-4",
    ]


async def test_restore_takes_the_recent_traffic_for_its_load_test_if_the_settings_say_so(
    site_with: MakeSite,
) -> None:
    from gpu_actions.restore.loadcheck import restore_load

    site = await site_with(restore={"load_workload": "recent"})
    load, notes = await restore_load(site.host)
    assert load == site.host.config.restore.load
    assert "the load of the settings" in notes[0]
    async with traffic(site, every_s=0.02) as seen:
        await until(lambda: len(seen) >= 100)
    load, notes = await restore_load(site.host)
    assert len(load.prompt_lengths) == 10
    assert load.duration_s == site.host.config.restore.load.duration_s
    assert notes[0].startswith("traffic of the last")
    assert LoadPolicy.model_validate(load.model_dump(mode="json")) == load


async def test_an_engine_without_histograms_of_lengths_tells_their_mean(site_with: MakeSite) -> None:
    site = await site_with(tp=["--no-lengths"])
    await remember_lengths(site.host)
    began_s = time.time()
    async with traffic(site, every_s=0.03) as seen:
        await until(lambda: len(seen) >= 60 and time.time() > began_s + 1.2)
    recent = await read_recent(site.host, "tp", window_s=time.time() - began_s)
    assert len(set(recent.prompt_lengths)) == 1
    assert recent.prompt_lengths[0] == pytest.approx(60, abs=4)
    assert recent.answer_lengths[0] == pytest.approx(10, abs=1)
    assert "only the mean lengths are known" in recent.notes
    assert recent.e2e_per_token_ms


async def test_a_router_or_an_engine_that_cannot_be_read_is_said_so(site_with: MakeSite) -> None:
    site = await site_with()
    await site.host.tp.unit.stop(grace_s=0)
    with pytest.raises(RecentUnknown, match="counters cannot be read"):
        await read_recent(site.host, "tp")
    await remember_lengths(site.host)
