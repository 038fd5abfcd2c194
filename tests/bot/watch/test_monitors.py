"""The looks: which make sense where, what is remembered over a restart, and when they hold. The whole way is in scenarios."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import ValidationError

from bot.presenter.message import Message
from bot.settings.model import MonitorSettings
from bot.store.records import Place, RunRecord, RunStatus
from bot.store.store import Store
from bot.watch.monitor_kinds import LOOKS, Look, looks_of
from bot.watch.monitors import MonitorMemory, Monitors
from bot.watch.undelivered_alerts import Alarm, UntoldAlarms
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.host import Host, build_host
from gpu_actions.models import VerdictKind
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.target import target_of_host
from gpu_actions.triage.judge import judge
from gpu_actions.triage.monitor_state import MonitorPolicy
from gpu_actions.triage.rule import CAUSES
from tests.bot.toys import ONCALL, launched, start, store_of, toy_settings
from tests.gpu_actions.fakes import build_fake_nvml, fake_nvml  # noqa: F401  (fixtures)
from tests.ports import free_port

TOPOLOGY, KERNEL_LOG, HANG, PROBE, REGRESSION = LOOKS


class Told:
    """Keeps what would be told to people."""

    def __init__(self) -> None:
        self.alarms: list[Alarm] = []
        self.said: list[str] = []

    def raise_alarm(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)

    def say(self, host: str, message: Message) -> None:
        self.said.append(message.text)


def monitors_of(store: Store, host: Host, told: Told, **settings: object) -> Monitors:
    chosen = MonitorSettings.model_validate({"topology_period_s": 1, **settings})
    return Monitors(
        chosen,
        store=store,
        hosts=lambda _: host,
        alerts=told,  # type: ignore[arg-type]
        memory=MonitorMemory(store, chosen),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(tmp_path)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    config = toy_settings(tmp_path).hosts[0].model_copy(update={"gpus": 8, "ras_address": None})
    return build_host(config, state_dir=tmp_path / "hosts" / "toy")


async def test_a_bad_link_is_told_at_the_second_look_once_and_its_end_after_three_good_ones(
    store: Store,
    host: Host,
    fake_nvml: Callable[..., Path],  # noqa: F811
) -> None:
    told = Told()
    monitors = monitors_of(store, host, told)
    fake_nvml("gpus=8")
    await monitors.look("toy", TOPOLOGY)
    fake_nvml("gpus=8", "gpu.2.link.5.active=0")
    await monitors.look("toy", TOPOLOGY)
    assert told.alarms == [], "one look may err"
    await monitors.look("toy", TOPOLOGY)
    (alarm,) = told.alarms
    assert (alarm.cause, alarm.verdict) == ("nvlink_partial", VerdictKind.FALL_BACK)
    assert "link 5 down" in alarm.reason
    # another process takes over: the row remembers, so nothing is told again
    again = monitors_of(store, host, told)
    await again.look("toy", TOPOLOGY)
    assert len(told.alarms) == 1
    fake_nvml("gpus=8")
    for _ in range(3):
        assert told.said == []
        await again.look("toy", TOPOLOGY)
    assert told.said == [
        ":large_green_circle: The link and topology poll sees no fault on toy any more (3 good looks in a row)."
    ]


async def test_a_driver_that_cannot_be_read_is_no_fault_but_no_sight(
    store: Store,
    host: Host,
    fake_nvml: Callable[..., Path],  # noqa: F811
) -> None:
    now = {"s": 1000.0}
    store.clock = lambda: now["s"]
    told = Told()
    monitors = monitors_of(store, host, told, hold_s=60)
    fake_nvml("gpus=8")
    await monitors.look("toy", TOPOLOGY)
    fake_nvml("gpus=8", "fail.nvmlInitWithFlags=999")
    for _ in range(4):
        now["s"] += 25
        await monitors.look("toy", TOPOLOGY)
    (card,) = told.alarms
    assert (card.verdict, card.cause) == (VerdictKind.UNKNOWN, "unknown")
    assert len(told.said) == 1
    assert "cannot see toy" in told.said[0]
    fake_nvml("gpus=8")
    await monitors.look("toy", TOPOLOGY)
    assert "sees toy again" in told.said[1]


async def test_a_kernel_log_without_a_bad_line_was_seen_and_a_missing_one_was_not(
    store: Store, host: Host, tmp_path: Path
) -> None:
    now = {"s": 1000.0}
    store.clock = lambda: now["s"]
    told, log = Told(), tmp_path / "kernel.log"
    log.write_text("[    1.0] Linux version 6.1\n")
    for gpus in (8, 0, None):  # a CPU host is judged by a file that was named for it
        config = host.config.model_copy(update={"gpus": gpus, "kernel_log": log})
        monitors = monitors_of(store, build_host(config, state_dir=tmp_path / "hosts" / "toy"), told)
        for _ in range(30):
            now["s"] += 5
            await monitors.look("toy", KERNEL_LOG)
    assert (told.alarms, told.said) == ([], [])
    log.unlink()
    for _ in range(30):
        now["s"] += 5
        await monitors.look("toy", KERNEL_LOG)
    assert [alarm.title for alarm in told.alarms] == ["the kernel log cannot see toy"]


async def test_a_new_xid_is_told_and_its_end_too_and_one_of_last_week_is_history(
    store: Store, host: Host, tmp_path: Path
) -> None:
    told, log = Told(), tmp_path / "kernel.log"
    line = "{} serve1 kernel: NVRM: Xid (PCI:0000:1b:00): 79, pid=1, GPU has fallen off the bus.\n"
    now = datetime.now(UTC)
    old = line.format((now - timedelta(days=7)).isoformat())
    log.write_text(old)
    config = host.config.model_copy(update={"kernel_log": log})
    monitors = monitors_of(store, build_host(config, state_dir=tmp_path / "hosts" / "toy"), told)
    for _ in range(3):
        await monitors.look("toy", KERNEL_LOG)
    assert told.alarms == []
    log.write_text(old + line.format(now.isoformat()))
    for _ in range(2):
        await monitors.look("toy", KERNEL_LOG)
    assert [alarm.cause for alarm in told.alarms] == ["gpu_lost"]
    log.write_text(old)
    for _ in range(3):
        await monitors.look("toy", KERNEL_LOG)
    assert "The kernel log sees no fault on toy any more" in told.said[0]


async def test_a_host_without_a_driver_that_declares_no_gpus_has_no_links_to_look_at(
    store: Store, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    now = {"s": 1000.0}
    store.clock = lambda: now["s"]
    told = Told()
    config = host.config.model_copy(update={"gpus": None})
    monitors = monitors_of(store, build_host(config, state_dir=tmp_path / "hosts" / "toy"), told)
    for _ in range(4):
        now["s"] += 50
        await monitors.look("toy", TOPOLOGY)
    assert (told.alarms, told.said) == ([], [])


async def test_a_driver_that_hangs_is_told_as_such(
    store: Store,
    host: Host,
    fake_nvml: Callable[..., Path],  # noqa: F811
) -> None:
    told = Told()
    monitors = monitors_of(store, host, told)
    fake_nvml("gpus=8", "gpu.0.sleep.nvmlDeviceGetPowerUsage=1")
    for _ in range(2):
        await monitors.look("toy", TOPOLOGY)
    assert [(alarm.cause, alarm.verdict) for alarm in told.alarms] == [("driver_hang", VerdictKind.UNKNOWN)]


async def test_a_stall_that_lasts_is_told_with_a_window_in_which_triage_sees_the_same(
    store: Store, host: Host, tmp_path: Path
) -> None:
    port, now, told = free_port(), {"s": 1000.0}, Told()
    store.clock = lambda: now["s"]
    tier = host.config.tiers["tp"]
    engine = tier.engine.model_copy(update={"url": f"http://127.0.0.1:{port}"})
    tiers = {**host.config.tiers, "tp": tier.model_copy(update={"engine": engine})}
    config = host.config.model_copy(update={"gpus": 0, "ras_address": None, "tiers": tiers})
    quick = TriageThresholds(metrics_timeout_s=0.5, stalled_fall_back_s=1, completion_deadline_s=1)
    stuck = build_host(config, state_dir=tmp_path / "hosts" / "toy", thresholds=quick)
    monitors = monitors_of(store, stuck, told, hang_period_s=0.5)
    async with engine_that_stands_still(port):
        for _ in range(4):
            now["s"] += 1
            await monitors.look("toy", PROBE)
        alarm = told.alarms[-1]
        assert (alarm.cause, alarm.verdict, alarm.window_s) == ("engine_stalled", VerdictKind.FALL_BACK, 3)
        snapshot = await collect(await target_of_host(stuck), quick, window_s=alarm.window_s)
    verdict = judge(snapshot, quick)
    assert (verdict.verdict, verdict.cause) == (VerdictKind.FALL_BACK, "engine_stalled")


@contextlib.asynccontextmanager
async def engine_that_stands_still(port: int) -> AsyncIterator[None]:
    """Two requests run, no token ever comes, a completion gets no answer."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            text="vllm:num_requests_running 2\nvllm:num_requests_waiting 0\nvllm:generation_tokens_total 9\n"
        )

    async def completions(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/v1/completions", completions)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def test_an_acknowledgement_is_never_lost_to_a_look_at_work(store: Store) -> None:
    memory, policy = MonitorMemory(store, MonitorSettings()), MonitorPolicy()

    def look() -> None:
        memory.observe("toy", HANG.name, None, policy=policy, alarm_of=lambda _: None)

    for number in range(20):
        cause = CAUSES[number % len(CAUSES)]
        looks = [asyncio.to_thread(look) for _ in range(4)]
        await asyncio.gather(*looks[:2], asyncio.to_thread(memory.acknowledge, "toy", cause), *looks[2:])
        assert cause in memory.load("toy", HANG.name).quiet_until_s


async def test_an_alarm_is_kept_with_the_state_that_raised_it(
    store: Store,
    host: Host,
    fake_nvml: Callable[..., Path],  # noqa: F811
) -> None:
    told = Told()
    monitors = monitors_of(store, host, told)
    fake_nvml("gpus=8", "gpu.2.link.5.active=0")
    for _ in range(2):
        await monitors.look("toy", TOPOLOGY)
    assert UntoldAlarms(store).all() == told.alarms, "these people were never told"


async def test_while_a_run_changes_the_host_nothing_is_looked_at(
    tmp_path: Path,
    host: Host,
    fake_nvml: Callable[..., Path],  # noqa: F811
) -> None:
    told = Told()
    fake_nvml("gpus=8", "gpu.2.link.5.active=0")
    async with launched(tmp_path) as runs:
        store = store_of(tmp_path)
        monitors = monitors_of(store, host, told)
        run = await start(runs, script="hold:a")
        await runs.wait(run.id, until=lambda run: run.status is RunStatus.RUNNING)
        for _ in range(3):
            await monitors.look("toy", TOPOLOGY)
        assert told.alarms == []
        await runs.stop(run.id, by=ONCALL)
        await runs.wait(run.id, until=lambda run: run.status.final)
        for _ in range(2):
            await monitors.look("toy", TOPOLOGY)
    assert len(told.alarms) == 1


@pytest.mark.parametrize(
    ("action", "held"),
    [("trace", {HANG, PROBE, REGRESSION}), ("loadtest", {PROBE, REGRESSION}), ("triage", set())],
)
async def test_a_run_that_spoils_what_a_look_reads_holds_that_look_and_no_other(
    store: Store, host: Host, action: str, held: set[Look]
) -> None:
    record = RunRecord(
        id="xx-1",
        action=action,
        host="toy",
        status=RunStatus.RUNNING,
        requester=ONCALL,
        place=Place(channel="C1"),
        created_at=1,
    )
    store.insert_run(record, dedupe_key="x", changes_host=False)
    monitors = monitors_of(store, host, Told())
    assert {look for look in LOOKS if monitors._held("toy", look)} == held
    assert not any(monitors._held("elsewhere", look) for look in LOOKS)


async def test_an_acknowledged_cause_is_quiet_for_its_time_and_another_is_not(
    store: Store,
    host: Host,
    fake_nvml: Callable[..., Path],  # noqa: F811
) -> None:
    told = Told()
    monitors = monitors_of(store, host, told)
    assert monitors.acknowledge("toy", "nvlink_partial", by=ONCALL) == 900
    fake_nvml("gpus=8", "gpu.2.link.5.active=0")
    for _ in range(3):
        await monitors.look("toy", TOPOLOGY)
    assert told.alarms == []
    fake_nvml("gpus=8", "gpu.2.fail.*=15")
    for _ in range(3):
        await monitors.look("toy", TOPOLOGY)
    assert [alarm.cause for alarm in told.alarms] == ["gpu_lost"]


def test_a_host_without_gpus_has_no_gpu_poll_and_its_kernel_log_only_where_a_file_is_named(
    tmp_path: Path,
) -> None:
    config = toy_settings(tmp_path).hosts[0]
    settings = MonitorSettings()
    cpu = config.model_copy(update={"gpus": 0})
    assert looks_of(config, settings) == LOOKS
    assert looks_of(cpu, settings) == (HANG, PROBE, REGRESSION)
    named = cpu.model_copy(update={"kernel_log": tmp_path / "kernel.log"})
    assert looks_of(named, settings) == (KERNEL_LOG, HANG, PROBE, REGRESSION)
    assert looks_of(config, MonitorSettings(hang_period_s=0, probe_period_s=0)) == (
        TOPOLOGY,
        KERNEL_LOG,
        REGRESSION,
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"confirm_n": 4, "confirm_m": 3}, "must not be above confirm_m"),
        ({"auto_fallback": ["nccl_hnag"]}, "'nccl_hnag' is no cause"),
        ({"auto_fallback": ["unknown"]}, "'unknown' is no cause"),
        ({"hang_period_s": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        MonitorSettings.model_validate(settings)


def test_a_state_of_another_version_is_forgotten_and_breaks_nothing(store: Store) -> None:
    from bot.store.schema import monitor_states

    with store.database.write() as connection:
        connection.execute(monitor_states.insert().values(host="toy", look="hang", state={"odd": True}))
    memory = MonitorMemory(store, MonitorSettings())
    assert memory.load("toy", "hang").confirmed == {}
    memory.acknowledge("toy", "nccl_hang")
    assert memory.acknowledged("toy", "nccl_hang")
    assert not memory.acknowledged("toy", "nvlink_loss")
