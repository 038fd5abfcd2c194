"""The deep probe's figures against the host's baseline, or against a floor of its GPU model."""

from collections.abc import Iterator

from gpu_actions.models import Finding
from gpu_actions.snapshot.collectors.deep import DeepReading
from gpu_actions.triage.checks.context import CheckContext, make_finding
from gpu_actions.triage.gpu_models import ModelFacts, model_facts


def check_deep(context: CheckContext) -> Iterator[Finding]:
    """Findings of the deep probe; none where it was not asked for."""
    snapshot = context.snapshot
    deep = snapshot.deep
    if deep is None:
        if snapshot.collectors.get("deep") is not None and not snapshot.skipped("deep"):
            yield make_finding("deep.unread", snapshot.why_not("deep"))
        return
    if deep.outcome != "ok":
        hung = deep.outcome == "timeout" and deep.startup_s is not None
        yield make_finding(
            "deep.hang" if hung else "deep.unread",
            f"all-reduce over {deep.world_size} {deep.backend} ranks: {deep.detail}",
            evidence=deep.model_dump(),
        )
        return
    findings = [*_bandwidth(context, deep), *_pairs(context, deep), *_gemm(context, deep)]
    yield from findings
    if not findings:
        busbw = "-" if deep.busbw_gbps is None else f"{deep.busbw_gbps:.0f}"
        yield make_finding(
            "deep.ok",
            f"all-reduce {busbw} GB/s over {deep.world_size} ranks ({deep.backend})",
            evidence=deep.model_dump(),
        )


def _facts(context: CheckContext, deep: DeepReading) -> ModelFacts | None:
    """Floors apply to figures of GPUs with links only, never to gloo's."""
    nvml = context.snapshot.nvml
    if deep.backend != "nccl" or nvml is None or not nvml.gpus or context.snapshot.expected.links == 0:
        return None
    return model_facts(nvml.gpus[0].name)


def _limit(known: float | None, ratio: float, floor: float | None) -> tuple[float | None, str]:
    if known is not None:
        return known * ratio, f"{ratio:.0%} of the baseline {known:.0f}"
    return floor, "the floor of this GPU model"


def _bandwidth(context: CheckContext, deep: DeepReading) -> Iterator[Finding]:
    facts = _facts(context, deep)
    limit, words = _limit(
        context.baseline.busbw_gbps, context.thresholds.busbw_ratio, facts.busbw_floor_gbps if facts else None
    )
    if deep.busbw_gbps is None or deep.world_size < 2:
        return
    evidence = {"busbw_gbps": deep.busbw_gbps, "limit_gbps": limit, "message_bytes": deep.message_bytes}
    if limit is None:
        yield make_finding(
            "deep.unjudged", f"all-reduce {deep.busbw_gbps:.1f} GB/s ({deep.backend})", evidence=evidence
        )
    elif deep.busbw_gbps < limit:
        yield make_finding(
            "pcie.busbw",
            f"all-reduce {deep.busbw_gbps:.1f} GB/s, under {limit:.0f}: {words}",
            evidence=evidence,
        )


def _pairs(context: CheckContext, deep: DeepReading) -> Iterator[Finding]:
    facts = _facts(context, deep)
    limit, words = _limit(
        context.baseline.p2p_gbps, context.thresholds.p2p_ratio, facts.p2p_floor_gbps if facts else None
    )
    slow = [pair for pair in deep.pairs if limit is not None and pair.gbps < limit]
    if slow:
        worst = min(slow, key=lambda pair: pair.gbps)
        yield make_finding(
            "pcie.pair",
            f"copy from GPU {worst.source} to {worst.target}: {worst.gbps:.1f} GB/s, under {limit:.0f}: {words}",
            evidence={"pairs": [pair.model_dump() for pair in slow[:64]], "limit_gbps": limit},
        )


def _gemm(context: CheckContext, deep: DeepReading) -> Iterator[Finding]:
    facts = _facts(context, deep)
    limit, words = _limit(
        context.baseline.gemm_tflops,
        context.thresholds.gemm_ratio,
        facts.gemm_floor_tflops if facts else None,
    )
    for gpu in deep.gpus:
        if limit is not None and gpu.gemm_tflops is not None and gpu.gemm_tflops < limit:
            yield make_finding(
                "deep.gemm",
                f"GPU {gpu.index}: {gpu.gemm_tflops:.0f} TFLOP/s, under {limit:.0f}: {words}",
                evidence={"gemm_tflops": gpu.gemm_tflops, "limit_tflops": limit},
                subject=gpu.uuid or f"GPU {gpu.index}",
            )
