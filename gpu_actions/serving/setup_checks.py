"""What `gpu-oncall doctor` finds out about a host's set-up before an incident needs it."""

import shutil
from typing import Literal

from gpu_actions.models import Frozen
from gpu_actions.system.processes import run_process

HELP_TIMEOUT_S = 60


class SetupCheck(Frozen):
    """One checked thing: its name, its status, and what to do if it is not ok."""

    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    fix: str = ""


def ok(name: str, detail: str) -> SetupCheck:
    return SetupCheck(name=name, status="ok", detail=detail)


def warning(name: str, detail: str, fix: str) -> SetupCheck:
    return SetupCheck(name=name, status="warning", detail=detail, fix=fix)


def failed(name: str, detail: str, fix: str) -> SetupCheck:
    return SetupCheck(name=name, status="failed", detail=detail, fix=fix)


async def check_command(name: str, argv: list[str]) -> SetupCheck:
    """Check that a program exists and that its own --help lists every flag that the settings pass to it."""
    if shutil.which(argv[0]) is None:
        return failed(name, f"{argv[0]} is not on this machine", "correct unit.argv")
    first_flag = next((i for i, part in enumerate(argv) if part.startswith("--")), len(argv))
    command = " ".join(argv[:first_flag])
    flags = [part.split("=", 1)[0] for part in argv[first_flag:] if part.startswith("--")]
    result = await run_process([*argv[:first_flag], "--help"], timeout_s=HELP_TIMEOUT_S)
    if result.timed_out or result.exit_code != 0:
        reason = "did not answer --help"
        if not result.timed_out:
            reason = (result.stderr.strip().splitlines() or ["no reason"])[-1]
        return failed(name, f"{command}: {reason}", "run it by hand and correct it")
    words = set((result.stdout + result.stderr).replace(",", " ").replace("[", " ").replace("=", " ").split())
    if unknown := [flag for flag in flags if flag not in words]:
        return failed(
            name, f"its --help does not list {', '.join(unknown)}", "the runbook drifted: correct unit.argv"
        )
    return ok(name, f"{command} runs and knows its {len(flags)} flags")
