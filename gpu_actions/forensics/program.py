"""Output of a program as evidence."""

import shutil

from gpu_actions.forensics.item import ITEM_CAP_BYTES, Collected, Missing
from gpu_actions.system.processes import run_process
from gpu_actions.system.redact import redacted_tail

PROGRAM_TIMEOUT_S = 60.0
"""The bundle's budget ends a program earlier; this is only against one that never ends."""


async def run_for_evidence(*argv: str, check: bool = False) -> Collected:
    """Run a program and return its output. Raises Missing where it is not installed, and with `check` where it fails."""
    if shutil.which(argv[0]) is None:
        raise Missing(f"{argv[0]} is not installed here")
    result = await run_process(
        argv, timeout_s=PROGRAM_TIMEOUT_S, max_output_bytes=ITEM_CAP_BYTES, kill_grace_s=0.2
    )
    if check and result.exit_code != 0:
        raise Missing(
            f"{argv[0]} ended with {result.exit_code}: {redacted_tail(' '.join(result.stderr.split()), 300)}"
        )
    text = result.stdout if check else result.stdout + result.stderr
    return Collected(text=text, exit_code=result.exit_code, truncated=result.truncated)
