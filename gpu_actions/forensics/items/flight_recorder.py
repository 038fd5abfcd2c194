"""Dumps of PyTorch's flight recorder: the last collectives of each rank, parsed in a child that runs none of their code."""

import tempfile
from pathlib import Path

from gpu_actions.forensics.item import Collected, Missing, Scope, evidence, while_active
from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.flight_recorder import copy_dumps, whole_dumps
from gpu_actions.snapshot.collectors.ranks import collect_ranks
from gpu_actions.snapshot.target import TriageTarget

WINDOW_S = 0.05


@evidence(
    "{tier}/flight_recorder.jsonl",
    source="PyTorch's flight recorder: the newest entries of each rank's dump",
    when=while_active,
)
async def flight_recorder(scope: Scope) -> Collected:
    state, ranks = scope.known_state, scope.the_tier.config.ranks
    target = TriageTarget(
        pids=() if state.main_pid is None else (state.main_pid,), members=state.pids, ranks=ranks
    )
    try:
        reading = await collect_ranks(Source(target=target, window_s=WINDOW_S, reads_nvml=False))
    except (CollectorFailed, CollectorSkipped) as error:
        raise Missing(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="gpu-oncall-flight-") as folder:
        copies, problems = copy_dumps(reading, Path(folder))
        refused = "; ".join(f"rank {dump.rank}: {dump.problem}" for dump in problems)
        if not copies:
            raise Missing(
                refused or "no rank has written a dump (TORCH_FR_BUFFER_SIZE, TORCH_NCCL_DUMP_ON_TIMEOUT)"
            )
        text = await whole_dumps(copies)
    return Collected(text=text + "".join(f"# {dump}\n" for dump in refused.split("; ") if dump))
