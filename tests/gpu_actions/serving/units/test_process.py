"""The process unit against real processes: survival, restarts, stops, and the environment."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from gpu_actions.serving.interfaces import UnitError
from gpu_actions.serving.units.process import ProcessUnit, SupervisedProcess
from gpu_actions.system.files import write_json

MakeUnit = Callable[..., SupervisedProcess]


async def eventually(condition: Callable[[], bool], *, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
async def make_unit(tmp_path: Path) -> AsyncIterator[MakeUnit]:
    """Build units whose processes are ended after the test."""
    made: list[SupervisedProcess] = []

    def make(code: str | None = None, *, name: str = "tp", **settings: object) -> SupervisedProcess:
        argv = ("sleep", "300") if code is None else ("{python}", "-c", code)
        config = ProcessUnit.model_validate({"argv": argv, "stop_grace_s": 5, **settings})
        made.append(SupervisedProcess(name, config, state_dir=tmp_path / "units"))
        return made[-1]

    yield make
    for unit in made:
        await unit.unfreeze()
        await unit.stop(grace_s=0)


def keeper_pid(unit: SupervisedProcess) -> int:
    return int(unit._record()["supervisor"][0])


async def test_a_started_unit_is_active_and_a_stopped_one_is_gone(make_unit: MakeUnit) -> None:
    unit = make_unit()
    assert not (await unit.state()).active
    await unit.start()
    state = await unit.state()
    assert state.active
    assert state.main_pid is not None
    assert psutil.Process(state.main_pid).cmdline() == ["sleep", "300"]
    assert state.pids == (state.main_pid,)
    assert abs((state.started_at_s or 0) - time.time()) < 10
    keeper = keeper_pid(unit)
    report = await unit.stop()
    assert report.was_active
    assert not report.killed
    assert report.pids == (state.main_pid,)
    assert not alive(state.main_pid)
    assert not alive(keeper)
    assert not (await unit.state()).active


async def test_a_second_start_finds_the_running_program_and_does_nothing(make_unit: MakeUnit) -> None:
    unit = make_unit()
    await unit.start()
    before = await unit.state()
    await unit.start()
    assert await unit.state() == before


async def test_concurrent_starts_leave_one_process(make_unit: MakeUnit, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    code = f"import os,time; open('{marks}/'+str(os.getpid()),'w'); time.sleep(300)"
    units = [make_unit(code) for _ in range(4)]
    await asyncio.gather(*(unit.start() for unit in units))
    await eventually(lambda: len(list(marks.iterdir())) > 0)
    states = [await unit.state() for unit in units]
    assert len({state.main_pid for state in states}) == 1
    assert len(list(marks.iterdir())) == 1


async def test_killing_the_starting_process_leaves_the_unit_running_and_another_can_stop_it(
    make_unit: MakeUnit, tmp_path: Path
) -> None:
    script = f"""
import asyncio, os, signal
from pathlib import Path
from gpu_actions.serving.units.process import ProcessUnit, SupervisedProcess
unit = SupervisedProcess("tp", ProcessUnit(argv=("sleep", "300")), state_dir=Path({str(tmp_path / "units")!r}))
asyncio.run(unit.start())
os.killpg(0, signal.SIGKILL)
"""
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", script, start_new_session=True)
    assert await starter.wait() == -signal.SIGKILL
    unit = make_unit()
    state = await unit.state()
    assert state.active
    report = await unit.stop()
    assert report.was_active
    assert not alive(state.main_pid or 0)


async def test_a_program_that_dies_is_restarted_and_counted(make_unit: MakeUnit) -> None:
    unit = make_unit()
    await unit.start()
    first = (await unit.state()).main_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: not alive(first) and unit._main(unit._record()) is not None)
    state = await unit.state()
    assert state.main_pid not in {None, first}
    assert state.restarts == 1
    assert len(state.restarted_at_s) == 1 and abs(state.restarted_at_s[0] - time.time()) < 60


async def test_without_restart_a_dead_program_stays_dead_and_its_supervisor_goes(make_unit: MakeUnit) -> None:
    unit = make_unit("pass", restart=False)
    await unit.start()
    await eventually(lambda: unit._keeper(unit._record()) is None)
    assert not (await unit.state()).active
    assert unit._record()["last_exit"] == "exit code 0"


async def test_a_freeze_stops_restarts_and_refuses_starts_with_its_reason(make_unit: MakeUnit) -> None:
    unit = make_unit()
    await unit.start()
    main = (await unit.state()).main_pid
    assert main is not None
    await unit.freeze("NVLink 3 is down, run fb-7k2m")
    state = await unit.state()
    assert state.active
    assert state.frozen
    assert state.frozen_reason == "NVLink 3 is down, run fb-7k2m"
    os.kill(main, signal.SIGKILL)
    await eventually(lambda: unit._keeper(unit._record()) is None)
    assert not (await unit.state()).active
    with pytest.raises(UnitError, match="NVLink 3 is down, run fb-7k2m"):
        await unit.start()
    await unit.unfreeze()
    await unit.start()
    assert (await unit.state()).active


async def test_a_freeze_cancels_a_restart_that_waits_for_its_backoff(make_unit: MakeUnit) -> None:
    unit = make_unit("raise SystemExit(3)")
    await unit.start()
    await eventually(lambda: int(unit._record().get("restarts", 0)) >= 2)
    await unit.freeze("crash loop")
    await eventually(lambda: unit._keeper(unit._record()) is None)
    count = unit._record()["restarts"]
    assert not (await unit.state()).active
    assert unit._record()["restarts"] == count


STUBBORN = """
import os, signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
hide = "import os,signal,sys,time; os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN); "
hide += "child = os.fork(); os._exit(0) if child else None; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(300)"
subprocess.Popen([sys.executable, "-c", hide, sys.argv[1]]).wait()
subprocess.Popen(["sleep", "300"])
Path(sys.argv[1] + ".ready").touch()
time.sleep(300)
"""


async def start_stubborn(make_unit: MakeUnit, tmp_path: Path) -> tuple[SupervisedProcess, int]:
    """Start a program that ignores SIGTERM, has a child, and a grandchild that forked twice into its own session."""
    file = tmp_path / "hidden.pid"
    unit = make_unit(argv=("{python}", "-c", STUBBORN, str(file)))
    await unit.start()
    ready = tmp_path / "hidden.pid.ready"
    await eventually(lambda: ready.exists() and file.exists() and file.read_text() != "")
    return unit, int(file.read_text())


async def test_stop_ends_processes_that_ignore_sigterm_or_left_the_session(
    make_unit: MakeUnit, tmp_path: Path
) -> None:
    unit, hidden = await start_stubborn(make_unit, tmp_path)
    pids = (await unit.state()).pids
    assert hidden in pids
    assert len(pids) == 3
    report = await unit.stop(grace_s=0.3)
    assert report.killed
    assert set(report.pids) >= set(pids)
    assert not [pid for pid in pids if alive(pid)]


async def test_stop_finds_the_tree_after_the_supervisor_was_killed(
    make_unit: MakeUnit, tmp_path: Path
) -> None:
    unit, hidden = await start_stubborn(make_unit, tmp_path)
    await eventually(lambda: [hidden] == [pid for pid, _ in unit._record()["known"] if pid == hidden])
    pids = (await unit.state()).pids
    os.kill(keeper_pid(unit), signal.SIGKILL)
    await eventually(lambda: unit._keeper(unit._record()) is None)
    assert (await unit.state()).pids == pids
    report = await unit.stop(grace_s=0.3)
    assert report.was_active
    assert not [pid for pid in pids if alive(pid)]


async def test_a_start_after_the_supervisor_was_killed_adopts_the_running_program(
    make_unit: MakeUnit,
) -> None:
    unit = make_unit()
    await unit.start()
    before = await unit.state()
    os.kill(keeper_pid(unit), signal.SIGKILL)
    await eventually(lambda: unit._keeper(unit._record()) is None)
    assert (await unit.state()).active
    await unit.start()
    assert await unit.state() == before
    assert unit._keeper(unit._record()) is not None
    os.kill(before.main_pid or 0, signal.SIGKILL)
    await eventually(lambda: unit._main(unit._record()) is not None and unit._record()["restarts"] == 1)


async def test_a_process_frozen_by_sigstop_is_stopped_within_the_grace(make_unit: MakeUnit) -> None:
    unit = make_unit()
    await unit.start()
    main = (await unit.state()).main_pid or 0
    os.kill(main, signal.SIGSTOP)
    await eventually(lambda: psutil.Process(main).status() == psutil.STATUS_STOPPED)
    report = await unit.stop(grace_s=10)
    assert not report.killed
    assert report.seconds < 8
    assert not alive(main)


async def test_processes_left_by_a_dead_program_are_ended_before_it_restarts(
    make_unit: MakeUnit, tmp_path: Path
) -> None:
    file = tmp_path / "child.pid"
    code = f"""
import os, subprocess, time
child = subprocess.Popen(["sleep", "300"])
open({str(file)!r}, "a").write(str(child.pid) + " ")
time.sleep(300)
"""
    unit = make_unit(code)
    await unit.start()
    await eventually(lambda: file.exists() and file.read_text().endswith(" "))
    os.kill((await unit.state()).main_pid or 0, signal.SIGKILL)
    await eventually(lambda: len(file.read_text().split()) == 2)
    first, second = map(int, file.read_text().split())
    assert not alive(first)
    assert alive(second)


async def test_the_environment_is_exactly_the_configured_one(
    make_unit: MakeUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLACK_BOT_TOKEN", "xoxb-must-not-leak")
    monkeypatch.setenv("HF_TOKEN", "taken over by name")
    monkeypatch.setenv("LANG", "C.UTF-8")
    unit = make_unit(
        env={"NCCL_DEBUG": "WARN", "NCCL_P2P_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "0,1"},
        env_from=("HF_TOKEN", "NOT_SET_ANYWHERE"),
    )
    await unit.set_scope({"CUDA_VISIBLE_DEVICES": "GPU-1234"}, unset=["NCCL_P2P_DISABLE"])
    assert await unit.scope() == {"CUDA_VISIBLE_DEVICES": "GPU-1234"}
    await unit.start()
    raw = Path(f"/proc/{(await unit.state()).main_pid}/environ").read_text().rstrip("\0").split("\0")
    expected = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "NCCL_DEBUG": "WARN",
        "CUDA_VISIBLE_DEVICES": "GPU-1234",
        "HF_TOKEN": "taken over by name",
    }
    if "HOME" in os.environ:
        expected["HOME"] = os.environ["HOME"]
    assert dict(item.split("=", 1) for item in raw) == expected
    keeper = Path(f"/proc/{keeper_pid(unit)}/environ").read_text()
    assert "xoxb-must-not-leak" not in keeper
    assert "taken over" not in keeper
    files = [path.read_text() for path in unit.folder.iterdir() if path.is_file()]
    assert not [text for text in files if "taken over by name" in text]


async def test_an_empty_scope_clears_the_earlier_one(make_unit: MakeUnit) -> None:
    unit = make_unit(env={"A": "1"})
    await unit.set_scope({"A": "2"}, unset=["LANG"])
    assert unit.environment()["A"] == "2"
    assert "LANG" not in unit.environment()
    await unit.set_scope({})
    assert await unit.scope() == {}
    assert unit.environment()["A"] == "1"


async def test_a_missing_program_is_a_unit_error_that_names_it(make_unit: MakeUnit) -> None:
    unit = make_unit(argv=("no-such-engine", "--serve"))
    with pytest.raises(UnitError, match="no-such-engine"):
        await unit.start()
    assert not (await unit.state()).active


async def test_the_log_keeps_output_and_its_tail_is_bounded(make_unit: MakeUnit) -> None:
    unit = make_unit(
        "import time\nfor i in range(5000): print('line', i, flush=False)\nprint(end='', flush=True)\ntime.sleep(300)"
    )
    await unit.start()
    deadline = time.monotonic() + 15
    while "line 4999\n" not in await unit.log_tail():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert len(await unit.log_tail(100)) == 100
    assert (unit.folder / "log").stat().st_mode & 0o777 == 0o600
    assert unit.folder.stat().st_mode & 0o777 == 0o700


async def test_the_log_is_rotated_at_its_cap_while_the_program_keeps_writing(
    make_unit: MakeUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_actions.serving.units.process.LOG_CAP_BYTES", 20_000)
    unit = make_unit("import time\nwhile True:\n print('x' * 999, flush=True); time.sleep(0.005)")
    await unit.start()
    rotated = unit.folder / "log.1"
    await eventually(rotated.exists)
    assert rotated.stat().st_size >= 20_000  # what was printed during the copy goes along

    await eventually(lambda: "x" * 999 in (unit.folder / "log").read_text())
    assert "x" * 999 in await unit.log_tail()


async def test_a_reused_pid_in_the_record_is_not_taken_for_the_unit(make_unit: MakeUnit) -> None:
    unit = make_unit()
    await unit.start()
    await unit.stop()
    bystander = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    try:
        record = unit._record() | {
            "main": [bystander.pid, 1],
            "session": bystander.pid,
            "known": [[bystander.pid, 1]],
        }
        write_json(unit.folder / "state.json", record)
        state = await unit.state()
        assert not state.active
        assert state.pids == ()
        await unit.stop()
        assert alive(bystander.pid)
    finally:
        bystander.kill()
        await bystander.wait()


async def test_the_described_start_hides_secrets(make_unit: MakeUnit) -> None:
    unit = make_unit(
        argv=("serve", "--api-key", "sk-1", "--hf-token=hf-2", "--port", "8101"), env={"VLLM_API_KEY": "sk-3"}
    )
    text = unit.describe_start()
    assert text.startswith("serve --api-key *** --hf-token=*** --port 8101")
    assert "VLLM_API_KEY" in text
    assert not [secret for secret in ("sk-1", "hf-2", "sk-3") if secret in text]


async def test_the_supervisor_is_small(make_unit: MakeUnit) -> None:
    unit = make_unit()
    await unit.start()
    assert psutil.Process(keeper_pid(unit)).memory_info().rss < 20 * 1024 * 1024
