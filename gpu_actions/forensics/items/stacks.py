"""The Python stack of each process by py-spy: without stopping the process, and never with local variables."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpu_actions.forensics.item import Collected, Missing, Scope, evidence, while_active
from gpu_actions.forensics.program import run_for_evidence
from gpu_actions.snapshot.collectors.stacks import find_py_spy

MAX_STACKS = 16


def _each_python_process(scope: Scope) -> Sequence[Scope]:
    if scope.state is None:
        return (scope,)  # named in the manifest with the reason
    pids = [pid for one in while_active(scope) for pid in one.known_state.pids if _may_be_python(pid)]
    return [replace(scope, pid=pid) for pid in pids[:MAX_STACKS]]


@evidence("{tier}/stack_{pid}.txt", source="py-spy dump --nonblocking --pid {pid}", when=_each_python_process)
async def stack(scope: Scope) -> Collected:
    _ = scope.known_state
    py_spy = find_py_spy()
    if py_spy is None:
        raise Missing("py-spy is installed neither beside this interpreter nor on PATH")
    return await run_for_evidence(py_spy, "dump", "--nonblocking", "--pid", str(scope.pid), check=True)


def _may_be_python(pid: int) -> bool:
    try:
        return "python" in Path(f"/proc/{pid}/exe").resolve().name
    except OSError:
        return True  # not readable by us: py-spy may have the right, else it reports why not
