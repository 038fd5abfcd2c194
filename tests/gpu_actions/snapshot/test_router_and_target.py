"""The router's admin socket against a real HAProxy, the target of a configured host, and the link matrix."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_actions.config.host import EngineConfig, HostConfig, TierConfig
from gpu_actions.models import Severity
from gpu_actions.serving.interfaces import UnitState
from gpu_actions.serving.units.process import ProcessUnit
from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.fabric_manager import parse_show
from gpu_actions.snapshot.collectors.router import collect_router
from gpu_actions.snapshot.target import TriageTarget, serving_tier, target_of_config
from gpu_actions.triage.judge import judge
from gpu_actions.triage.matrix import matrix_of
from tests.gpu_actions.fakes import end
from tests.gpu_actions.triage import builders as make
from tests.ports import free_port

CONFIG = """
global
  stats socket {socket} mode 600 level admin
defaults
  mode http
  timeout connect 1s
  timeout client 5s
  timeout server 5s
frontend in
  bind 127.0.0.1:{port}
  default_backend serve
backend serve
  server tp 127.0.0.1:1 weight 100 disabled
  server fb 127.0.0.1:2 weight {weight}
"""


@pytest.fixture
def haproxy(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Start a real HAProxy with one server in maintenance and one with the weight of the test."""
    program = shutil.which("haproxy")
    assert program, "install haproxy (make setup)"
    port = free_port()
    path = tmp_path / "admin.sock"
    (tmp_path / "h.cfg").write_text(
        CONFIG.format(socket=path, port=port, weight=getattr(request, "param", 50))
    )
    process = subprocess.Popen([program, "-db", "-q", "-f", str(tmp_path / "h.cfg")], start_new_session=True)
    until = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    yield path
    end(process)


def source_of(socket: Path | None, *, backend: str = "serve") -> Source:
    return Source(
        target=TriageTarget(router_address=None if socket is None else str(socket), router_backend=backend),
        window_s=0,
    )


async def test_servers_weights_and_states_are_read_from_haproxy(haproxy: Path) -> None:
    reading = await collect_router(source_of(haproxy))
    rows = {row.server: row for row in reading.servers}
    assert (rows["tp"].admin_state, rows["fb"].weight) == ("maint", 50)
    ids = {finding.id for finding in judge(make.healthy(router=reading)).findings}
    assert {"router.tier_out", "router.ok"} <= ids


@pytest.mark.parametrize("haproxy", [0], indirect=True)
async def test_a_router_without_a_usable_server_is_router_down(haproxy: Path) -> None:
    reading = await collect_router(source_of(haproxy))
    verdict = judge(make.healthy(router=reading))
    assert (verdict.verdict, verdict.cause) == ("watch", "router_down")


async def test_a_missing_backend_is_reported(haproxy: Path) -> None:
    reading = await collect_router(source_of(haproxy, backend="nope"))
    assert reading.outcome == "no_backend" and "nope" in reading.detail


async def test_a_socket_without_an_answer_means_the_router_is_down(tmp_path: Path) -> None:
    assert (await collect_router(source_of(tmp_path / "gone.sock"))).outcome == "down"
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert (await collect_router(source_of(path))).outcome == "down"
    with pytest.raises(CollectorSkipped):
        await collect_router(source_of(None))


def test_service_states_are_parsed_and_missing_ones_are_a_failure() -> None:
    text = "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\n"
    reading = parse_show(text, unit="nvidia-fabricmanager.service")
    assert (reading.load_state, reading.active_state, reading.result) == ("loaded", "failed", "exit-code")
    with pytest.raises(CollectorFailed):
        parse_show("", unit="nvidia-fabricmanager.service")


def tier(server: str, port: int, **fields: object) -> TierConfig:
    return TierConfig.model_validate(
        {
            "engine": EngineConfig(url=f"http://127.0.0.1:{port}", model="m"),
            "unit": ProcessUnit(argv=("true",)),
            "server": server,
            **fields,
        }
    )


HOST = HostConfig(
    name="h1",
    gpus=8,
    tiers={
        "tp": tier("tp", 8101, gpus=8, ranks=8),
        "fallback": tier("fb", 8102, gpus=1, memory_gib_per_gpu=42),
    },
)
RUNS = UnitState(active=True, frozen=False, main_pid=77)
STOPPED = UnitState(active=False, frozen=True)
DIED = UnitState(active=False, frozen=False)


def test_the_target_of_a_running_tier_carries_its_process_ranks_router_and_the_fallbacks_memory() -> None:
    target = target_of_config(HOST, tier="tp", state=RUNS, router_address="http://127.0.0.1:9000")
    assert target.router_address == "http://127.0.0.1:9000", "an address may be a URL"
    assert (target.pids, target.ranks, target.engine_url) == ((77,), 8, "http://127.0.0.1:8101")
    assert (target.fallback_memory_gib, target.router_server, target.tier_expected) == (42, "tp", True)


def test_a_tier_that_was_stopped_and_frozen_is_not_expected_and_one_that_died_is() -> None:
    assert not target_of_config(HOST, tier="tp", state=STOPPED, router_address=None).tier_expected
    died = target_of_config(HOST, tier="tp", state=DIED, router_address=None)
    assert died.tier_expected and died.unit_active is False


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({"tp": RUNS, "fallback": DIED}, "tp"),
        ({"tp": RUNS, "fallback": RUNS}, "tp"),
        ({"tp": STOPPED, "fallback": RUNS}, "fallback"),
        ({"tp": DIED, "fallback": DIED}, "tp"),
        ({"tp": None, "fallback": RUNS}, "tp"),
    ],
)
def test_triage_targets_the_tier_that_should_serve(
    states: dict[str, UnitState | None], expected: str
) -> None:
    assert serving_tier(states) == expected


def test_the_matrix_marks_links_remote_ends_and_the_chosen_gpu() -> None:
    snapshot = make.healthy(nvml=make.links_down({0: (7,), 3: (3,)}))
    matrix = matrix_of(snapshot, judge(snapshot))
    assert [link.index for link in matrix.gpus[0].links if link.state == "down"] == [7]
    assert matrix.gpus[0].severity is Severity.CRITICAL and matrix.gpus[1].severity is Severity.OK
    assert matrix.bad_ends == ("switch 0000:08:00",) and matrix.fallback_index == 1


def test_the_matrix_shows_unreported_links_and_missing_gpus() -> None:
    fewer = make.nvml(count=7)
    first = fewer.gpus[0].model_copy(update={"links": fewer.gpus[0].links[:16]})
    matrix = matrix_of(make.healthy(nvml=fewer.model_copy(update={"gpus": (first, *fewer.gpus[1:7])})))
    assert [link.index for link in matrix.gpus[0].links if link.state == "absent"] == [16, 17]
    assert matrix.missing_gpus == 1


def test_the_matrix_of_a_host_without_gpus_is_empty() -> None:
    assert matrix_of(make.without(make.healthy(), "nvml")).gpus == ()
