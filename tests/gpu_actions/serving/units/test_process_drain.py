"""A stop of an engine with child processes: the engine first if there is time to drain, otherwise all at once."""

import asyncio
from pathlib import Path

import pytest

from gpu_actions.serving.units.process import ProcessUnit, SupervisedProcess

DRAINS = """
import os, signal, subprocess, sys, time
LINES = os.environ["LINES_FILE"]
def say(line):
    with open(LINES, "a") as file:
        file.write(line + "\\n")
if sys.argv[-1] == "child":
    signal.signal(signal.SIGTERM, lambda *_: (say("child told"), os._exit(0)))
    say("child up")
    time.sleep(300)
child = subprocess.Popen([sys.executable, "-c", os.environ["CODE"], "child"], start_new_session=True)
def end(*_):
    say("main told")
    time.sleep(0.8)
    say("main drained")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
time.sleep(300)
"""


@pytest.mark.parametrize(
    ("grace_s", "order"),
    [
        (10, ["child up", "main told", "main drained", "child told"]),
        (2, ["child up", "child told", "main drained", "main told"]),
    ],
)
async def test_only_a_short_grace_signals_the_engines_own_processes_before_it_has_drained(
    tmp_path: Path, grace_s: float, order: list[str]
) -> None:
    lines = tmp_path / "lines"
    config = ProcessUnit(argv=("{python}", "-c", DRAINS), env={"LINES_FILE": str(lines), "CODE": DRAINS})
    unit = SupervisedProcess("tp", config, state_dir=tmp_path / "units")
    await unit.start()
    async with asyncio.timeout(15):
        while not lines.exists():
            await asyncio.sleep(0.02)
    report = await unit.stop(grace_s=grace_s)
    said = lines.read_text().splitlines()
    assert not report.killed
    assert (said if grace_s > 5 else [said[0], *sorted(said[1:])]) == order
    if grace_s < 5:
        assert said.index("child told") < said.index("main drained")
