"""The last 15 minutes of the kernel log: from the configured file, /dev/kmsg or the journal."""

import asyncio
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from gpu_actions.forensics.item import ITEM_CAP_BYTES, Collected, Missing, Scope, evidence
from gpu_actions.forensics.program import run_for_evidence
from gpu_actions.snapshot.collector import CollectorFailed
from gpu_actions.snapshot.collectors.kernel_log import boot_time, read_kmsg, tail_of
from gpu_actions.snapshot.kernel_log_lines import time_of

SPAN = timedelta(minutes=15)


@evidence("host/kernel_log.txt", source="kernel log, 15 min", keep="tail")
async def kernel_log(scope: Scope) -> Collected:
    since = datetime.now(UTC) - SPAN
    file = scope.host.config.kernel_log
    if file is not None:
        lines, truncated = await asyncio.to_thread(tail_of, file, ITEM_CAP_BYTES)
        return Collected(text=_since(lines, since), truncated=truncated)
    try:
        return Collected(text=_since(await asyncio.to_thread(read_kmsg), since))
    except (OSError, CollectorFailed) as error:
        if shutil.which("journalctl") is None:
            raise Missing(f"/dev/kmsg: {error}; and journalctl is not installed") from error
    return await run_for_evidence(
        "journalctl", "-k", "--no-pager", "-o", "short-iso", "--since", "-15min", check=True
    )


def _since(lines: Sequence[str], since: datetime) -> str:
    """Keep the lines from `since` on. A line without a time goes with the line before it."""
    booted, now = boot_time(), datetime.now(UTC)
    kept, keep = [], True
    for line in lines:
        at = time_of(line, booted=booted, now=now)
        keep = keep if at is None else at >= since
        if keep:
            kept.append(line)
    return "\n".join(kept) + "\n"
