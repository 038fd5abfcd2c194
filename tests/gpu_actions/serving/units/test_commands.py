"""The commands unit with real commands: a tier run by another supervisor, which a small script stands in for."""

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from gpu_actions.serving.interfaces import UnitError
from gpu_actions.serving.units.commands import CommandsUnit, CommandUnit

KEEPER = """#!{python}
import os, pathlib, signal, subprocess, sys
folder = pathlib.Path({folder!r})
pid_file, verb = folder / "pid", sys.argv[1]
with open(folder / "calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
def alive():
    try:
        os.kill(int(pid_file.read_text()), 0)
        return "Z" != open(f"/proc/{{pid_file.read_text()}}/stat").read().split()[2]
    except (OSError, ValueError):
        return False
if verb == "start":
    child = subprocess.Popen(["sh", "-c", {program!r}], start_new_session=True, stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid_file.write_text(str(child.pid))
elif verb == "stop":
    os.kill(int(pid_file.read_text()), signal.SIGTERM) if alive() else None
elif verb == "active":
    sys.exit(0 if alive() else 3)
elif verb == "pid":
    print(pid_file.read_text())
elif verb == "log":
    print("the last words")
elif verb == "env":
    (folder / "env").write_text(pathlib.Path(sys.argv[2]).read_text())
elif verb == "fail":
    print("no such pool", file=sys.stderr); sys.exit(4)
"""

MakeUnit = Callable[..., CommandUnit]


@pytest.fixture
async def make_unit(tmp_path: Path) -> AsyncIterator[MakeUnit]:
    """Build a unit around the script; its processes are ended after the test."""
    script = tmp_path / "keeper"

    def make(*, program: str = "exec sleep 300", **settings: object) -> CommandUnit:
        script.write_text(KEEPER.format(python=sys.executable, folder=str(tmp_path), program=program))
        script.chmod(0o700)
        commands = {
            "start": (str(script), "start"),
            "stop": (str(script), "stop"),
            "is_active": (str(script), "active"),
            "main_pid": (str(script), "pid"),
            "log": (str(script), "log"),
            "stop_grace_s": 2,
        }
        config = CommandsUnit.model_validate({**commands, **settings})
        return CommandUnit("tp", config, state_dir=tmp_path / "units")

    yield make
    try:
        os.kill(int((tmp_path / "pid").read_text()), 9)
    except (FileNotFoundError, ProcessLookupError):
        return


def calls(tmp_path: Path) -> list[str]:
    return [line for line in (tmp_path / "calls").read_text().splitlines() if line not in {"active", "pid"}]


async def test_start_stop_and_state_go_through_the_commands(make_unit: MakeUnit, tmp_path: Path) -> None:
    unit = make_unit()
    assert not (await unit.state()).active
    await unit.start()
    await unit.start()
    state = await unit.state()
    assert state.active
    assert state.main_pid == int((tmp_path / "pid").read_text())
    assert state.pids == (state.main_pid,)
    assert state.started_at_s is not None
    report = await unit.stop()
    assert (report.was_active, report.killed, report.pids) == (True, False, (state.main_pid,))
    assert not (await unit.state()).active
    assert calls(tmp_path) == ["start", "stop"]


async def test_a_process_that_outlives_the_stop_command_is_killed_after_the_grace(
    make_unit: MakeUnit, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    unit = make_unit(program=f"trap '' TERM; touch {ready}; while :; do sleep 0.1; done", stop_grace_s=0.2)
    await unit.start()
    main = (await unit.state()).main_pid
    assert main is not None
    while not ready.exists():
        await asyncio.sleep(0.01)
    report = await unit.stop()
    assert report.killed
    assert main in report.pids
    assert not psutil.pid_exists(main) or psutil.Process(main).status() == psutil.STATUS_ZOMBIE


async def test_a_freeze_refuses_our_starts_and_runs_its_command(make_unit: MakeUnit, tmp_path: Path) -> None:
    script = str(tmp_path / "keeper")
    unit = make_unit(freeze=(script, "frozen"), unfreeze=(script, "thawed"))
    await unit.freeze("GPU 3 lost")
    state = await unit.state()
    assert (state.frozen, state.frozen_reason) == (True, "GPU 3 lost")
    with pytest.raises(UnitError, match="GPU 3 lost"):
        await unit.start()
    await unit.unfreeze()
    assert not (await unit.state()).frozen
    assert calls(tmp_path) == ["frozen", "thawed"]


async def test_the_scope_is_passed_on_as_a_private_file(make_unit: MakeUnit, tmp_path: Path) -> None:
    unit = make_unit(set_environment=(str(tmp_path / "keeper"), "env"))
    await unit.set_scope({"CUDA_VISIBLE_DEVICES": "GPU-1", "NOTE": "it's $HOME"}, unset=["NCCL_P2P_DISABLE"])
    assert await unit.scope() == {"CUDA_VISIBLE_DEVICES": "GPU-1", "NOTE": "it's $HOME"}
    handed = unit.folder / "scope.env"
    assert stat.S_IMODE(handed.stat().st_mode) == 0o600
    shell = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'. {handed}; printf "%s|%s|%s" "$CUDA_VISIBLE_DEVICES" "$NOTE" "$NCCL_P2P_DISABLE"'),
        env={"NCCL_P2P_DISABLE": "1"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert (await shell.communicate())[0] == b"GPU-1|it's $HOME|"
    assert (tmp_path / "env").read_text() == handed.read_text()


async def test_a_scope_without_a_command_for_it_is_an_error(make_unit: MakeUnit) -> None:
    unit = make_unit()
    await unit.set_scope({})
    with pytest.raises(UnitError, match="set_environment"):
        await unit.set_scope({"CUDA_VISIBLE_DEVICES": "0"})


async def test_a_failing_command_is_an_error_with_its_last_output(
    make_unit: MakeUnit, tmp_path: Path
) -> None:
    unit = make_unit(start=(str(tmp_path / "keeper"), "fail"))
    with pytest.raises(UnitError, match=r"start command.*exit code 4: no such pool"):
        await unit.start()


async def test_a_start_that_starts_nothing_is_an_error(make_unit: MakeUnit, tmp_path: Path) -> None:
    unit = make_unit(start=("true",))
    with pytest.raises(UnitError, match="says that it is not active"):
        await unit.start()


async def test_a_missing_program_is_an_error_that_names_it(make_unit: MakeUnit) -> None:
    with pytest.raises(UnitError, match="no-such-tool"):
        await make_unit(is_active=("no-such-tool",)).state()


async def test_arguments_are_never_read_by_a_shell(make_unit: MakeUnit, tmp_path: Path) -> None:
    unit = make_unit(start=(str(tmp_path / "keeper"), "start", "; touch", f"{tmp_path}/pwned", "$(id)"))
    await unit.start()
    assert calls(tmp_path) == [f"start ; touch {tmp_path}/pwned $(id)"]
    assert not (tmp_path / "pwned").exists()


async def test_the_log_is_the_output_of_its_command(make_unit: MakeUnit) -> None:
    assert (await make_unit().log_tail()).strip() == "the last words"
    assert await make_unit(log=()).log_tail() == ""
