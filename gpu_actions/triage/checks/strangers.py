"""Who else uses the tier's GPUs? A stranger's kernels halt the tier's, and its memory is missing when a tier starts."""

from collections.abc import Iterator

from gpu_actions.models import Finding
from gpu_actions.snapshot.activity import gpus_of_tier, strangers_of
from gpu_actions.snapshot.collectors.nvml import GpuProcess, GpuReading
from gpu_actions.triage.check import Check, CheckContext, count
from gpu_actions.triage.rule import INFO, WATCH, Rules, rule

BY_PROCESS = "NVML compute processes and their utilisation"

RULES = Rules(
    rule(
        "gpu.hogged", WATCH, "processes that are not the tier's take a large share of one of its GPUs",
        "Find out whose they are (ps -o user,cmd -p PID), and end or move them. A fallback needs a GPU without strangers.",
        source=BY_PROCESS, cause="gpu_hogged", threshold="stranger_share_percent",
    ),
    rule(
        "gpu.stranger", INFO, "a process that is not the tier's holds memory of one of its GPUs", source=BY_PROCESS,
    ),
    rule(
        "gpu.strangers_unread", INFO,
        "NVML lists none of the tier's processes, so strangers cannot be told from them (another pid namespace)",
        source=BY_PROCESS,
    ),
)  # fmt: skip


def check_strangers(context: CheckContext) -> Iterator[Finding]:
    """Judge the processes on the GPUs of a tier that should run."""
    snapshot = context.snapshot
    nvml, ranks = snapshot.nvml, snapshot.ranks
    if not context.has_gpus or nvml is None or ranks is None or not snapshot.expected.tier_expected:
        return
    own = {row.pid for row in ranks.processes} | set(snapshot.expected.other_pids)
    gpus = gpus_of_tier(nvml.gpus, own)
    listed = sum(len(gpu.processes) for gpu in nvml.gpus)
    if not gpus and listed:
        yield RULES.finding(
            "gpu.strangers_unread", f"{count(listed, 'process', 'processes')}, none of them known"
        )
    for gpu in gpus:
        if strangers := strangers_of(gpu, own):
            yield _finding(context, gpu, strangers, [row for row in gpu.processes if row.pid in own])


def _finding(
    context: CheckContext, gpu: GpuReading, strangers: list[GpuProcess], own: list[GpuProcess]
) -> Finding:
    share = sum(row.sm_percent or 0 for row in strangers)
    is_hogged = share >= context.thresholds.stranger_share_percent
    mine = sum(row.sm_percent or 0 for row in own)
    named = ", ".join(f"{row.label} {_use(row)}" for row in strangers[:3])
    more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
    return RULES.on_gpu(
        gpu,
        "gpu.hogged" if is_hogged else "gpu.stranger",
        f"{named}{more}" + (f"; the tier's own processes {mine:.0f} %" if is_hogged else ""),
        strangers=[row.model_dump() for row in strangers[:16]],
        share_percent=share,
        tier_percent=mine,
    )


def _use(row: GpuProcess) -> str:
    share = "an unknown share" if row.sm_percent is None else f"{row.sm_percent:.0f} %"
    memory = "" if row.memory_mib is None else f" and holds {row.memory_mib / 1024:.1f} GiB"
    return f"uses {share}{memory}"


STRANGERS = Check(
    title="Strangers on the GPUs", rules=RULES, reads=frozenset({"nvml", "ranks"}), judge=check_strangers
)
