"""`gpu-oncall demo` comes up from every state in which an earlier one can leave its folder, its ports and its processes.

All states share one folder, so that each is reached from the one before with as few starts as possible; a state run alone
makes what it needs first. Each start costs seconds, so the usual suite plays the first start, kill -9, a taken port and Ctrl-C
on the fallback; the other states are heavy.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from bot.store.records import RunRecord, StepStatus
from demo.host.leftovers import is_supervisor, processes_of
from demo.workspace.client import WorkspaceError
from tests.demo.host.running import Demonstration, os_kill

pytestmark = pytest.mark.timeout(300)
NOTE = "a note that must outlive every restart"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demonstration]:
    demonstration = Demonstration(tmp_path_factory.mktemp("states"))
    yield demonstration
    demonstration.close()


async def up(demo: Demonstration) -> None:
    """Have it run, whatever the test before left."""
    if not demo.is_up:
        await demo.start("--free-ports")


async def on_the_fallback(demo: Demonstration) -> str:
    """Have it run with a finished fallback in service. Return the run's id."""
    await up(demo)
    async with demo.incident() as incident:
        runs = incident.store.list(action="fallback", limit=1)
        if not runs or not frozen(demo):
            await incident.break_("frozen-rank")
            await incident.command("/fallback start")
        return (await incident.ended("fallback", timeout_s=150)).id


async def in_the_middle_of_a_fallback(demo: Demonstration) -> None:
    """Have it run with a fallback that has stopped tp and starts the fallback tier."""
    if demo.is_up and frozen(demo):
        await demo.interrupt()
        await demo.start("--free-ports", "--fresh")
    await up(demo)
    async with demo.incident() as incident:
        await incident.client.say("oncall", "incidents", NOTE)
        began = incident.store.clock()
        await incident.break_("frozen-rank")
        await incident.command("/fallback start")
        await incident.run(
            "fallback",
            after=began,
            until=lambda run: is_running(run, "launch"),
        )


def is_running(run: RunRecord, step_id: str) -> bool:
    return any(step.step_id == step_id and step.status is StepStatus.RUNNING for step in run.steps)


def frozen(demo: Demonstration) -> bool:
    return any((demo.state_dir / "bot").glob("**/units/tp/frozen"))


async def eventually_says(demo: Demonstration, text: str) -> None:
    """Wait until a message of the workspace contains the text; the workspace itself may be on its way up."""
    deadline = time.monotonic() + 20
    async with demo.incident() as incident:
        while True:
            try:
                await incident.says(text)
                return
            except WorkspaceError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)


@contextmanager
def stranger_on(port: int) -> Iterator[None]:
    """Hold a port, as a program that has nothing to do with the demonstration would."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield


# -- the states: each leaves the demonstration down --------------------------------------------------------------------


async def a_folder_that_was_never_used(demo: Demonstration) -> None:
    assert not demo.state_dir.exists()


async def a_clean_stop(demo: Demonstration) -> None:
    await up(demo)
    await demo.interrupt()


async def kill_9_of_the_demonstration_alone_and_damaged_pid_files(demo: Demonstration) -> None:
    await up(demo)
    demo.kill_demonstration()
    for name in ("bot.pid", "workspace.pid", "demo.lock", "serving.json"):
        (demo.state_dir / name).write_bytes(b"\xff\x00 no number")


async def a_router_left_behind_that_no_unit_knows_of(demo: Demonstration) -> None:
    await up(demo)
    demo.kill_everything(but=lambda process: process.name() == "haproxy")
    assert [process.name() for process in processes_of(demo.state_dir)] == ["haproxy"]
    for file in (demo.state_dir / "bot").glob("**/units/router/state.json"):
        file.unlink()


async def an_engine_left_behind_without_its_supervisor(demo: Demonstration) -> None:
    await up(demo)
    demo.kill_everything(but=lambda process: "demo.engine" in process.cmdline())
    assert processes_of(demo.state_dir, programs=("engine",))


async def an_interrupted_first_start(demo: Demonstration) -> None:
    if demo.is_up:
        await demo.interrupt()
    demo.spawn("--free-ports", "--fresh")
    await demo.prints("Starting the serving host")
    demo.kill_everything()


async def a_damaged_layout_file(demo: Demonstration) -> None:
    await up(demo)
    await demo.interrupt()
    (demo.state_dir / "demo.json").write_text("{")


@pytest.mark.parametrize(
    "leave",
    [
        kill_9_of_the_demonstration_alone_and_damaged_pid_files,
        *(
            pytest.param(leave, marks=pytest.mark.heavy)
            for leave in (
                a_folder_that_was_never_used,
                a_clean_stop,
                a_router_left_behind_that_no_unit_knows_of,
                an_engine_left_behind_without_its_supervisor,
                an_interrupted_first_start,
                a_damaged_layout_file,
            )
        ),
    ],
    ids=lambda leave: leave.__name__,
)
async def test_the_demonstration_comes_up_and_tp_serves_after(
    demo: Demonstration, leave: Callable[[Demonstration], Awaitable[None]]
) -> None:
    await leave(demo)
    await demo.start("--free-ports")
    await demo.serves()
    assert not frozen(demo)


@pytest.mark.parametrize("name", ["router", pytest.param("workspace", marks=pytest.mark.heavy)])
async def test_a_port_taken_by_a_stranger_is_named_with_the_process_and_a_way_out(
    demo: Demonstration, name: str
) -> None:
    await up(demo)
    await demo.interrupt()
    port = getattr(demo.layout.ports, name)
    with stranger_on(port):
        said = await demo.fails_to_start()
        assert f"port {port} ({name}) is taken by" in said
        assert f"(process {psutil.Process().pid})" in said
        assert f"`kill {psutil.Process().pid}`, or start with --free-ports" in said
        await demo.start("--free-ports")
        assert getattr(demo.layout.ports, name) != port
        await demo.serves()


async def test_a_second_demonstration_on_the_folder_is_refused_and_the_first_keeps_running(
    demo: Demonstration,
) -> None:
    await up(demo)
    second = Demonstration(demo.state_dir.parent)
    second._out = demo.state_dir.parent / "second.out"
    said = await second.fails_to_start("--fresh")
    assert f"a demonstration already runs on {demo.state_dir}" in said
    await demo.serves()


async def test_ports_held_by_another_demonstration_are_named_with_all_processes_to_end(
    demo: Demonstration, tmp_path: Path
) -> None:
    await up(demo)
    other = Demonstration(tmp_path)
    other.state_dir.mkdir()
    layout = demo.layout.model_copy(update={"state_dir": other.state_dir})
    layout.path.write_text(layout.model_dump_json())
    said = await other.fails_to_start()
    for program, port in (("haproxy", layout.ports.router), ("demo.engine", layout.ports.tp)):
        owner = next(
            process
            for process in processes_of(demo.state_dir)
            if any(each.laddr.port == port for each in process.net_connections("tcp") if not each.raddr)
        )
        assert program in " ".join(owner.cmdline())
        line = next(line for line in said.splitlines() if f"port {port} " in line)
        keeper = next(process for process in owner.parents() if is_supervisor(process))
        assert f"`kill -9 {keeper.pid} {owner.pid}`, or start with --free-ports" in line
    await demo.serves()


async def test_a_killed_workspace_comes_back_with_its_messages_and_the_bot_connects_again(
    demo: Demonstration,
) -> None:
    await up(demo)
    async with demo.incident() as incident:
        await incident.client.say("oncall", "incidents", NOTE)
        os_kill(demo.pid_of("workspace"))
        await demo.prints("The workspace ended")
    await demo.prints("starting it again")
    await eventually_says(demo, NOTE)
    async with demo.incident() as incident:
        deadline = time.monotonic() + 60
        while not (await incident.client.state("oncall"))["app"]["connected"]:
            assert time.monotonic() < deadline, "the bot did not connect again"
            await asyncio.sleep(0.2)


async def test_kill_9_between_the_freeze_and_the_stop_of_tp_leaves_the_frozen_tier_alone(
    demo: Demonstration,
) -> None:
    await up(demo)
    demo.kill_demonstration()
    (unit,) = (demo.state_dir / "bot").glob("**/units/tp")
    (unit / "frozen").write_text('{"reason": "a fallback that was cut"}')
    said = await demo.start("--free-ports")
    assert "tp is frozen (a fallback that was cut)" in said
    (unit / "frozen").unlink()
    await demo.serves()


@pytest.mark.heavy
async def test_ctrl_c_in_the_middle_of_a_fallback_continues_the_run_at_the_next_start(
    demo: Demonstration,
) -> None:
    await in_the_middle_of_a_fallback(demo)
    await demo.interrupt()
    said = await demo.start("--free-ports")
    run = await demo.run_succeeds("fallback")
    assert f"Run {run.id} continues." in said
    await demo.serves()
    await eventually_says(demo, NOTE)


async def test_ctrl_c_on_the_fallback_continues_the_incident_where_it_was(demo: Demonstration) -> None:
    run_id = await on_the_fallback(demo)
    await demo.interrupt()
    said = await demo.start("--free-ports")
    assert "Continuing where the last demonstration" in said
    assert "fallback serves, tp is frozen" in said
    assert "`gpu-oncall demo --fresh` starts anew" in said
    assert frozen(demo)
    await demo.serves()
    await eventually_says(demo, f"({run_id})")


@pytest.mark.heavy
async def test_kill_9_of_everything_in_the_middle_of_a_restore_continues_it_at_the_next_start(
    demo: Demonstration,
) -> None:
    await on_the_fallback(demo)
    async with demo.incident() as incident:
        await incident.break_("mend")
        await incident.command("/restore start cause=rank-was-frozen")
        run = await incident.run("restore", until=lambda r: r.status.value == "waiting")
        await incident.says(f"approve {run.id}")
        await incident.press("approve", user="lead", run=run.id)
        await incident.run("restore", until=lambda r: is_running(r, "compare"))
        await incident.press("next", run=run.id)
        await incident.run(
            "restore", until=lambda r: any(s.step_id.startswith("shift") for s in r.steps if s.executions)
        )
    demo.kill_everything()
    await demo.start("--free-ports")
    async with demo.incident() as incident:
        ended = await incident.ended("restore", timeout_s=200)
    assert ended.id == run.id
    assert ended.status.final
    await demo.serves()


@pytest.mark.heavy
async def test_kill_9_of_everything_in_the_middle_of_a_fallback_continues_it_at_the_next_start(
    demo: Demonstration,
) -> None:
    await in_the_middle_of_a_fallback(demo)
    demo.kill_everything()
    await demo.start("--free-ports")
    await demo.run_succeeds("fallback")
    await demo.serves()
    await eventually_says(demo, NOTE)


@pytest.mark.heavy
async def test_fresh_after_an_incident_starts_anew(demo: Demonstration) -> None:
    await on_the_fallback(demo)
    await demo.interrupt()
    said = await demo.start("--free-ports", "--fresh")
    assert "Continuing" not in said
    assert not frozen(demo)
    await demo.serves()
    async with demo.incident() as incident:
        assert incident.store.list(action="fallback", limit=1) == []
        assert not any("fallback" in message.text.lower() for message in await incident.messages())
    await demo.interrupt()


@pytest.mark.heavy
@pytest.mark.timeout(1500)
async def test_two_drills_by_schedule_leave_their_incidents_and_a_chart(tmp_path: Path) -> None:
    """The schedule's clock runs fast: every Tuesday at ten is every six minutes."""
    demo = Demonstration(tmp_path)
    try:
        await demo.start("--free-ports", "--drills")
        async with demo.incident() as incident, asyncio.timeout(1300):
            while True:
                runs = [run for run in incident.store.list(action="drill", limit=5) if run.status.final]
                if len(runs) == 2:
                    break
                await asyncio.sleep(2)
            assert [run.requester.id for run in runs] == ["schedule", "schedule"], runs
            assert {run.status.value for run in runs} == {"succeeded"}, runs
            assert all(
                any(one.artifact.title == "times of the drills" for one in run.artifacts) for run in runs
            )
            assert all(run.incident_id for run in runs)
        await demo.serves()  # the production tier was not touched
    finally:
        demo.close()
