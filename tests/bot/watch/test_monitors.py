"""Monitors: which apply to a host, what survives a restart, and when they pause. The scenarios test the whole path."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import ValidationError

from bot.presenter.alerts import noticed
from bot.settings.watch import MonitorSettings
from bot.store.records import Alert, MonitorNotice, Place, RunRecord, RunStatus
from bot.store.store import Store
from bot.watch.monitor_kinds import MONITOR_KINDS, MonitorKind, monitors_for
from bot.watch.monitor_memory import MonitorMemory
from bot.watch.monitors import Monitors
from bot.watch.scheduler import Schedule
from bot.watch.undelivered_alerts import UndeliveredAlerts
from gpu_actions.config.host import HostConfig
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.host import Host, build_host
from gpu_actions.models import VerdictKind
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.target import target_of_host
from gpu_actions.triage.judge import judge
from gpu_actions.triage.rule import CAUSES
from tests.bot.toys import ONCALL, launched, start, store_of, toy_settings
from tests.gpu_actions.fakes import build_fake_nvml, fake_nvml  # noqa: F401  (fixtures)
from tests.ports import free_port

KINDS = {kind.name: kind for kind in MONITOR_KINDS}
NAMED = TOPOLOGY, KERNEL_LOG, HANG, PROBE, REGRESSION, MIRROR = [
    KINDS[name] for name in ("topology", "kernel_log", "hang", "probe", "regression", "mirror")
]


class People:
    """Stands in for Alerts and records what people would see."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.said: list[str] = []

    def report(self, alert: Alert) -> None:
        self.alerts.append(alert)

    def notice(self, notice: MonitorNotice) -> None:
        self.said.append(noticed(notice).text)


def monitors_of(store: Store, host: Host, people: People, **settings: object) -> Monitors:
    chosen = MonitorSettings.model_validate({"topology_period_s": 1, **settings})
    return Monitors(
        chosen,
        store=store,
        hosts=lambda _: host,
        alerts=people,
        memory=MonitorMemory(store, chosen),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(tmp_path)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    config = toy_settings(tmp_path).hosts[0].model_copy(update={"gpus": 8, "ras_address": None})
    return build_host(config, state_dir=tmp_path / "hosts" / "toy")


async def test_a_bad_link_is_reported_once_at_the_second_bad_reading_and_cleared_after_three_good_ones(
    store: Store,
    host: Host,
    fake_nvml: Callable[..., Path],  # noqa: F811
) -> None:
    people = People()
    monitors = monitors_of(store, host, people)
    fake_nvml("gpus=8")
    await monitors.check("toy", TOPOLOGY)
    fake_nvml("gpus=8", "gpu.2.link.5.active=0")
    await monitors.check("toy", TOPOLOGY)
    assert people.alerts == [], "one reading may be wrong"
    await monitors.check("toy", TOPOLOGY)
    (alert,) = people.alerts
    assert (alert.cause, alert.verdict) == ("nvlink_partial", VerdictKind.FALL_BACK)
    assert "link 5 down" in alert.reason
    # another process takes over: the state is in the database, so nothing is reported again
    again = monitors_of(store, host, people)
    await again.check("toy", TOPOLOGY)
    assert len(people.alerts) == 1
    fake_nvml("gpus=8")
    for _ in range(3):
        assert people.said == []
        await again.check("toy", TOPOLOGY)
    assert people.said == [
        ":large_green_circle: The link and topology poll no longer reports a fault on toy (3 healthy checks in a row)."
    ]


async def test_a_driver_that_cannot_be_read_is_reported_as_unreadable_not_as_a_fault(
    store: Store,
    host: Host,
    fake_nvml: Callable[..., Path],  # noqa: F811
) -> None:
    now = {"s": 1000.0}
    store.clock = lambda: now["s"]
    people = People()
    monitors = monitors_of(store, host, people, hold_s=60)
    fake_nvml("gpus=8")
    await monitors.check("toy", TOPOLOGY)
    fake_nvml("gpus=8", "fail.nvmlInitWithFlags=999")
    for _ in range(4):
        now["s"] += 25
        await monitors.check("toy", TOPOLOGY)
    (card,) = people.alerts
    assert (card.verdict, card.cause) == (VerdictKind.UNKNOWN, "unknown")
    assert len(people.said) == 1
    assert "cannot read toy" in people.said[0]
    fake_nvml("gpus=8")
    await monitors.check("toy", TOPOLOGY)
    assert "can read toy again" in people.said[1]


async def test_a_kernel_log_without_a_bad_line_is_healthy_and_a_missing_one_is_unreadable(
    store: Store, host: Host, tmp_path: Path
) -> None:
    now = {"s": 1000.0}
    store.clock = lambda: now["s"]
    people, log = People(), tmp_path / "kernel.log"
    log.write_text("[    1.0] Linux version 6.1\n")
    for gpus in (8, 0, None):  # a host without GPUs is judged if its settings name a log file
        config = host.config.model_copy(update={"gpus": gpus, "kernel_log": log})
        monitors = monitors_of(store, build_host(config, state_dir=tmp_path / "hosts" / "toy"), people)
        for _ in range(30):
            now["s"] += 5
            await monitors.check("toy", KERNEL_LOG)
    assert (people.alerts, people.said) == ([], [])
    log.unlink()
    for _ in range(30):
        now["s"] += 5
        await monitors.check("toy", KERNEL_LOG)
    assert [alert.title for alert in people.alerts] == ["the kernel log cannot read toy"]


async def test_a_new_xid_is_reported_and_cleared_and_one_of_last_week_is_ignored(
    store: Store, host: Host, tmp_path: Path
) -> None:
    people, log = People(), tmp_path / "kernel.log"
    line = "{} serve1 kernel: NVRM: Xid (PCI:0000:1b:00): 79, pid=1, GPU has fallen off the bus.\n"
    now = datetime.now(UTC)
    old = line.format((now - timedelta(days=7)).isoformat())
    log.write_text(old)
    config = host.config.model_copy(update={"kernel_log": log})
    monitors = monitors_of(store, build_host(config, state_dir=tmp_path / "hosts" / "toy"), people)
    for _ in range(3):
        await monitors.check("toy", KERNEL_LOG)
    assert people.alerts == []
    log.write_text(old + line.format(now.isoformat()))
    for _ in range(2):
        await monitors.check("toy", KERNEL_LOG)
    assert [alert.cause for alert in people.alerts] == ["gpu_lost"]
    log.write_text(old)
    for _ in range(3):
        await monitors.check("toy", KERNEL_LOG)
    assert "The kernel log no longer reports a fault on toy" in people.said[0]


async def test_a_host_without_a_driver_and_without_declared_gpus_has_no_links_to_check(
    store: Store, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    now = {"s": 1000.0}
    store.clock = lambda: now["s"]
    people = People()
    config = host.config.model_copy(update={"gpus": None})
    monitors = monitors_of(store, build_host(config, state_dir=tmp_path / "hosts" / "toy"), people)
    for _ in range(4):
        now["s"] += 50
        await monitors.check("toy", TOPOLOGY)
    assert (people.alerts, people.said) == ([], [])


async def test_a_driver_that_hangs_is_reported_as_such(
    store: Store,
    host: Host,
    fake_nvml: Callable[..., Path],  # noqa: F811
) -> None:
    people = People()
    monitors = monitors_of(store, host, people)
    fake_nvml("gpus=8", "gpu.0.sleep.nvmlDeviceGetPowerUsage=1")
    for _ in range(2):
        await monitors.check("toy", TOPOLOGY)
    assert [(alert.cause, alert.verdict) for alert in people.alerts] == [("driver_hang", VerdictKind.UNKNOWN)]


async def test_a_lasting_stall_is_reported_with_a_window_in_which_triage_sees_the_same(
    store: Store, host: Host, tmp_path: Path
) -> None:
    port, now, people = free_port(), {"s": 1000.0}, People()
    store.clock = lambda: now["s"]
    tier = host.config.tiers["tp"]
    engine = tier.engine.model_copy(update={"url": f"http://127.0.0.1:{port}"})
    tiers = {**host.config.tiers, "tp": tier.model_copy(update={"engine": engine})}
    config = host.config.model_copy(update={"gpus": 0, "ras_address": None, "tiers": tiers})
    quick = TriageThresholds(metrics_timeout_s=0.5, stalled_fall_back_s=1, completion_deadline_s=1)
    stuck = build_host(config, state_dir=tmp_path / "hosts" / "toy", thresholds=quick)
    monitors = monitors_of(store, stuck, people, hang_period_s=0.5)
    async with engine_that_stands_still(port):
        for _ in range(4):
            now["s"] += 1
            await monitors.check("toy", PROBE)
        alert = people.alerts[-1]
        assert (alert.cause, alert.verdict, alert.window_s) == ("engine_stalled", VerdictKind.FALL_BACK, 3)
        snapshot = await collect(await target_of_host(stuck), quick, window_s=alert.window_s)
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


async def test_an_acknowledgement_is_never_lost_to_a_concurrent_check(store: Store) -> None:
    memory = MonitorMemory(store, MonitorSettings())

    def check() -> None:
        memory.observe("toy", HANG.name, None, stalled_s=30, alert_of=lambda _: None)

    for number in range(20):
        cause = CAUSES[number % len(CAUSES)]
        checks = [asyncio.to_thread(check) for _ in range(4)]
        await asyncio.gather(*checks[:2], asyncio.to_thread(memory.acknowledge, "toy", cause), *checks[2:])
        assert cause in memory.load("toy", HANG.name).quiet_until_s


async def test_an_alert_is_stored_with_the_state_that_raised_it(
    store: Store,
    host: Host,
    fake_nvml: Callable[..., Path],  # noqa: F811
) -> None:
    people = People()
    monitors = monitors_of(store, host, people)
    fake_nvml("gpus=8", "gpu.2.link.5.active=0")
    for _ in range(2):
        await monitors.check("toy", TOPOLOGY)
    assert UndeliveredAlerts(store).all() == people.alerts, "nothing has delivered them"


async def test_nothing_is_checked_while_a_run_changes_the_host(
    tmp_path: Path,
    host: Host,
    fake_nvml: Callable[..., Path],  # noqa: F811
) -> None:
    people = People()
    fake_nvml("gpus=8", "gpu.2.link.5.active=0")
    async with launched(tmp_path) as runs:
        store = store_of(tmp_path)
        monitors = monitors_of(store, host, people)
        run = await start(runs, script="hold:a")
        await runs.wait(run.id, until=lambda run: run.status is RunStatus.RUNNING)
        for _ in range(3):
            await monitors.check("toy", TOPOLOGY)
        assert people.alerts == []
        await runs.stop(run.id, by=ONCALL)
        await runs.wait(run.id, until=lambda run: run.status.final)
        for _ in range(2):
            await monitors.check("toy", TOPOLOGY)
    assert len(people.alerts) == 1


@pytest.mark.parametrize(
    ("action", "paused"),
    [
        ("trace", {HANG, PROBE, REGRESSION, MIRROR}),
        ("loadtest", {PROBE, REGRESSION, MIRROR}),
        ("triage", set()),
    ],
)
async def test_a_run_pauses_the_monitors_whose_readings_it_spoils_and_no_other(
    store: Store, host: Host, action: str, paused: set[MonitorKind]
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
    monitors = monitors_of(store, host, People())
    assert {kind for kind in MONITOR_KINDS if monitors._paused("toy", kind)} == paused
    assert not any(monitors._paused("elsewhere", kind) for kind in MONITOR_KINDS)


async def test_an_acknowledged_cause_is_quiet_for_its_time_and_another_is_not(
    store: Store,
    host: Host,
    fake_nvml: Callable[..., Path],  # noqa: F811
) -> None:
    people = People()
    monitors = monitors_of(store, host, people)
    assert monitors.acknowledge("toy", "nvlink_partial", by=ONCALL) == 900
    fake_nvml("gpus=8", "gpu.2.link.5.active=0")
    for _ in range(3):
        await monitors.check("toy", TOPOLOGY)
    assert people.alerts == []
    fake_nvml("gpus=8", "gpu.2.fail.*=15")
    for _ in range(3):
        await monitors.check("toy", TOPOLOGY)
    assert [alert.cause for alert in people.alerts] == ["gpu_lost"]


def test_a_host_without_gpus_has_no_gpu_poll_and_its_kernel_log_only_where_a_file_is_named(
    tmp_path: Path,
) -> None:
    config = toy_settings(tmp_path).hosts[0]
    settings = MonitorSettings()
    cpu = config.model_copy(update={"gpus": 0})
    named = cpu.model_copy(update={"kernel_log": tmp_path / "kernel.log"})

    def of(host: HostConfig, settings: MonitorSettings = settings) -> list[MonitorKind]:
        return [kind for kind in monitors_for(host, settings) if kind in NAMED]

    assert [*of(config), MIRROR] == NAMED, "load needs a person's word"
    assert of(config, MonitorSettings(mirror_period_s=900)) == NAMED
    assert of(cpu) == [HANG, PROBE, REGRESSION]
    assert of(named) == [KERNEL_LOG, HANG, PROBE, REGRESSION]
    assert of(config, MonitorSettings(hang_period_s=0, probe_period_s=0)) == [
        TOPOLOGY,
        KERNEL_LOG,
        REGRESSION,
    ]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"confirm_n": 4, "confirm_m": 3}, "must not be above confirm_m"),
        ({"auto_fallback": ["nccl_hnag"]}, "'nccl_hnag' is not a cause"),
        ({"auto_fallback": ["unknown"]}, "'unknown' is not a cause"),
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


async def test_the_first_mirrored_load_comes_after_one_period_and_the_lengths_are_read_every_minute(
    store: Store, host: Host
) -> None:
    monitors, schedule = monitors_of(store, host, People(), mirror_period_s=900), Schedule()
    schedule.start()
    try:
        monitors.schedule(schedule, [host.config])
        due = {job.id: job.next_run_time - datetime.now(UTC) for job in schedule._scheduler.get_jobs()}
    finally:
        schedule.close()
    assert timedelta(seconds=800) < due["mirror:toy"]
    assert due["regression:toy"] < timedelta(seconds=60)
    assert "recent_traffic:toy" in due
