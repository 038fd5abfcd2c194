"""The deep probe's figures against the host's baseline, or against a floor of its GPU model."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpu_actions.models import Finding
from gpu_actions.snapshot.collectors.deep import DeepGpu, DeepReading
from gpu_actions.snapshot.collectors.nvml import GpuReading
from gpu_actions.triage.check import Check, CheckContext
from gpu_actions.triage.gpu_models import ModelFacts, host_link_gbps, model_facts
from gpu_actions.triage.rule import CRITICAL, INFO, OK, UNKNOWN, WATCH, Rules, rule

PROBE = "deep probe"

RULES = Rules(
    rule("deep.ok", OK, "all-reduce, copies and GEMM reach their expected figures", source=PROBE),
    rule(
        "deep.hang", CRITICAL, "a fresh all-reduce over all GPUs did not finish",
        "Fall back: collectives hang on this host even without an engine.", source=PROBE, cause="nccl_hang",
        threshold="deep_deadline_s",
    ),
    rule(
        "deep.corrupt_copy", CRITICAL, "data copied from one GPU to another arrived corrupted: results cannot be trusted",
        "Fall back to a GPU outside this pair. Reset both GPUs, then check their links and memory.", source=PROBE,
        cause="data_corruption",
    ),
    rule(
        "deep.wrong_sum", CRITICAL, "an all-reduce returned a wrong sum: results cannot be trusted",
        "Fall back. Reset the GPUs, then run the deep probe again.", source=PROBE, cause="data_corruption",
    ),
    rule(
        "pcie.busbw", CRITICAL, "all-reduce is far slower than the baseline or the floor of the GPU model",
        "Fall back. Compare with the findings on links, then restart the tier.", source=PROBE, cause="pcie_only",
        threshold="busbw_ratio",
    ),
    rule(
        "pcie.pair", CRITICAL, "copies between two GPUs are far slower than they should be",
        "Fall back. Check the links of these two GPUs.", source=PROBE, cause="pcie_only", threshold="p2p_ratio",
    ),
    rule(
        "deep.gemm", WATCH, "a GPU multiplies matrices far slower than its baseline or its model",
        "Check clocks, power and temperature of that GPU.", source=PROBE, cause="throttling", threshold="gemm_ratio",
    ),
    rule(
        "deep.memory", WATCH, "a GPU copies within its memory far slower than its baseline or its model",
        "Check its memory clock (nvidia-smi -q -d CLOCK) and its remapped rows.", source=PROBE, cause="throttling",
        threshold="memory_ratio",
    ),
    rule(
        "deep.host_link", WATCH, "copies between the host and a GPU are far slower than its baseline or its slot allows",
        "Check the slot's lanes and generation (lspci -vv, LnkSta), the IOMMU, and which CPU the GPU is attached to.",
        source=PROBE, cause="pcie_degraded", threshold="host_link_ratio",
    ),
    rule(
        "deep.unread", UNKNOWN, "the deep probe was requested but did not finish",
        "Free memory on every GPU (stop the tier) and run it again; the reason is in the summary.", source=PROBE,
        threshold="deep_free_gib",
    ),
    rule(
        "deep.unjudged", INFO, "the probe measured, but this GPU has neither a baseline nor a floor",
        "Record a baseline on a known-good day: /triage deep record_baseline=yes.", source=PROBE,
    ),
)  # fmt: skip


def check_deep(context: CheckContext) -> Iterator[Finding]:
    """Judge the deep probe, if it was requested."""
    snapshot = context.snapshot
    deep = snapshot.deep
    if deep is None:
        if snapshot.failed("deep"):
            yield RULES.finding("deep.unread", snapshot.why_not("deep"))
        return
    corruptions = [*_corruptions(context, deep)]
    yield from corruptions
    if deep.outcome != "ok":
        hung = deep.outcome == "timeout" and deep.startup_s is not None
        yield RULES.finding(
            "deep.hang" if hung else "deep.unread",
            f"all-reduce over {deep.world_size} {deep.backend} ranks: {deep.detail}",
            **deep.model_dump(),
        )
        return
    findings = [*_figures(context, deep)]
    yield from findings
    if not findings and not corruptions:
        yield RULES.finding("deep.ok", measured(deep), **deep.model_dump())


def measured(deep: DeepReading) -> str:
    """Return the figures of the probe in one line; with several GPUs those of the slowest."""
    parts = []
    if deep.busbw_gbps is not None:
        parts.append(f"all-reduce {deep.busbw_gbps:.0f} GB/s over {deep.world_size} ranks ({deep.backend})")
    if deep.pairs:
        parts.append(f"copies {min(pair.gbps for pair in deep.pairs):.0f} GB/s")
    for words, unit, field in (
        ("GEMM", "TFLOP/s", "gemm_tflops"),
        ("memory", "GB/s", "memory_gbps"),
        ("host to GPU", "GB/s", "to_gpu_gbps"),
        ("GPU to host", "GB/s", "from_gpu_gbps"),
    ):
        if values := [value for gpu in deep.gpus if (value := getattr(gpu, field)) is not None]:
            parts.append(f"{words} {min(values):.0f} {unit}")
    together = [
        rate
        for gpu in deep.gpus
        for rate in (gpu.to_gpu_together_gbps, gpu.from_gpu_together_gbps)
        if rate is not None
    ]
    if together and deep.world_size > 1:
        parts.append(f"{min(together):.0f} GB/s while all copy")
    return ", ".join(parts) or "nothing was measured"


def _corruptions(context: CheckContext, deep: DeepReading) -> Iterator[Finding]:
    """Report corrupt copies on the GPUs with most of them: both of a single pair, or the one that corrupts all its copies."""
    nvml = context.snapshot.nvml
    subjects = {gpu.index: gpu.subject for gpu in (nvml.gpus if nvml is not None else ())}
    corrupt = [pair for pair in deep.pairs if pair.corrupt]
    counts = Counter(index for pair in corrupt for index in (pair.source, pair.target))
    for index in sorted(counts):
        if counts[index] == max(counts.values()):
            own = [pair for pair in corrupt if index in (pair.source, pair.target)]
            names = ", ".join(f"GPU {pair.source} to GPU {pair.target}" for pair in own)
            yield RULES.finding(
                "deep.corrupt_copy",
                f"GPU {index}: copies arrived corrupted: {names}",
                subject=subjects.get(index, f"GPU {index}"),
                pairs=[[pair.source, pair.target] for pair in own],
            )
    wrong = [gpu for gpu in deep.gpus if gpu.wrong_sum is not None]
    if wrong:
        names = ", ".join(f"GPU {gpu.index}" for gpu in wrong)
        yield RULES.finding(
            "deep.wrong_sum",
            f"the all-reduce returned {wrong[0].wrong_sum:g} instead of {deep.world_size} on {names}",
            gpus=[gpu.index for gpu in wrong],
        )


def _figures(context: CheckContext, deep: DeepReading) -> Iterator[Finding]:
    limits, baseline, nvml = context.thresholds, context.baseline, context.snapshot.nvml
    gpus = (
        nvml.gpus if deep.backend == "nccl" and nvml is not None else ()
    )  # CPU tensors are not judged as GPUs
    # The floors of a model are those of GPUs with links; the slowest model of a host decides.
    linked = () if context.snapshot.expected.links == 0 else [model_facts(gpu.name) for gpu in gpus]

    limit, reason = _limit(
        baseline.busbw_gbps, limits.busbw_ratio, _lowest(linked, lambda facts: facts.busbw_floor_gbps)
    )
    if deep.busbw_gbps is not None and deep.world_size > 1:
        text = f"all-reduce {deep.busbw_gbps:.1f} GB/s"
        evidence: dict[str, Any] = {
            "busbw_gbps": deep.busbw_gbps,
            "limit_gbps": limit,
            "message_bytes": deep.message_bytes,
        }
        if limit is None:
            yield RULES.finding("deep.unjudged", f"{text} ({deep.backend})", **evidence)
        elif deep.busbw_gbps < limit:
            yield RULES.finding("pcie.busbw", f"{text}, below {limit:.0f}: {reason}", **evidence)

    limit, reason = _limit(
        baseline.p2p_gbps, limits.p2p_ratio, _lowest(linked, lambda facts: facts.p2p_floor_gbps)
    )
    slow = [pair for pair in deep.pairs if limit is not None and pair.gbps < limit]
    if slow:
        worst = min(slow, key=lambda pair: pair.gbps)
        yield RULES.finding(
            "pcie.pair",
            f"copy from GPU {worst.source} to GPU {worst.target}: {worst.gbps:.1f} GB/s, below {limit:.0f}: {reason}",
            pairs=[pair.model_dump() for pair in slow[:64]],
            limit_gbps=limit,
        )

    by_index = {gpu.index: gpu for gpu in gpus}
    for measured_gpu in deep.gpus:
        yield from _figures_of_gpu(context, measured_gpu, by_index.get(measured_gpu.index))


def _figures_of_gpu(context: CheckContext, deep: DeepGpu, gpu: GpuReading | None) -> Iterator[Finding]:
    """Judge what one GPU does alone: by the baseline, else by what its model and its slot reach."""
    limits, baseline = context.thresholds, context.baseline
    facts = model_facts(gpu.name) if gpu is not None else None
    slot = host_link_gbps(gpu) if gpu is not None else None
    for rule_id, what, value, unit, known, ratio, usual in (
        ("deep.gemm", "GEMM", deep.gemm_tflops, "TFLOP/s", baseline.gemm_tflops, limits.gemm_ratio,
         facts and facts.gemm_tflops),
        ("deep.memory", "memory", deep.memory_gbps, "GB/s", baseline.memory_gbps, limits.memory_ratio,
         facts and facts.memory_gbps),
        ("deep.host_link", "host link", deep.host_link_gbps, "GB/s", baseline.host_link_gbps, limits.host_link_ratio,
         slot),
    ):  # fmt: skip
        good = usual if known is None else known
        if value is None or good is None or value >= good * ratio:
            continue
        of = (
            "the baseline"
            if known is not None
            else "its slot"
            if rule_id == "deep.host_link"
            else "this GPU model"
        )
        yield RULES.finding(
            rule_id,
            f"GPU {deep.index}: {what} {value:.0f} {unit}, below {good * ratio:.0f}: "
            f"{ratio:.0%} of the {good:.0f} {unit} of {of}",
            measured=value,
            limit=good * ratio,
            unit=unit,
            subject=deep.uuid or f"GPU {deep.index}",
        )


def _lowest(
    models: Sequence[ModelFacts | None], floor_of: Callable[[ModelFacts], float | None]
) -> float | None:
    """Return the lowest floor of several models, or None if one of them has none."""
    floors = [floor_of(facts) if facts is not None else None for facts in models]
    known = [floor for floor in floors if floor is not None]
    return min(known) if known and len(known) == len(floors) else None


def _limit(known: float | None, ratio: float, floor: float | None) -> tuple[float | None, str]:
    if known is not None:
        return known * ratio, f"{ratio:.0%} of the baseline of {known:.0f}"
    return floor, "the floor of this GPU model"


DEEP = Check(title="Deep probe", rules=RULES, reads=frozenset({"deep", "nvml"}), judge=check_deep)
