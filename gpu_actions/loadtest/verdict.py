"""The verdict of a run: passed, failed or void, with the reasons as sentences. Pure."""

from gpu_actions.config.policies import LatencyLimits
from gpu_actions.loadtest.result import (
    CrossCheck,
    ErrorClass,
    Latency,
    Lateness,
    Percentile,
    Requests,
    RunVerdict,
    Saturation,
)
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.statistics import unbounded_text


def judged_latencies(latency: Latency, limits: LatencyLimits) -> list[tuple[str, Percentile, float]]:
    """Return the p99s that have a limit, with its name and its limit in ms. A limit per token replaces that of an answer."""
    judged = [("TTFT", latency.ttft.p99, limits.slo_ttft_ms)]
    if limits.slo_e2e_per_token_ms is not None and latency.e2e_per_token is not None:
        judged.append(("E2E per token", latency.e2e_per_token.p99, limits.slo_e2e_per_token_ms))
    else:
        judged.append(("E2E", latency.e2e.p99, limits.slo_e2e_ms))
    if limits.slo_itl_ms is not None:
        judged.append(("ITL", latency.itl.p99, limits.slo_itl_ms))
    return judged


def judge(
    *,
    spec: LoadSpec,
    requests: Requests,
    latency: Latency,
    lateness: Lateness,
    saturation: Saturation,
    errors: tuple[ErrorClass, ...],
    cross: CrossCheck,
    partial_reason: str | None,
    ended_by_service: bool,
) -> tuple[RunVerdict, tuple[str, ...], tuple[str, ...]]:
    """Return verdict, reasons and warnings.

    A run is void when the client was the bottleneck or nothing was measured. A run stopped by request is failed if it was
    failing, else void. `ended_by_service`: the run ended early because the service died or was swamped.
    """
    void: list[str] = []
    failed: list[str] = []
    warnings: list[str] = []
    if lateness.over:
        void.append(
            f"the client was the bottleneck: p99 lateness {lateness.p99_ms:.1f} ms, limit {lateness.limit_ms:.1f} ms; "
            f"use more processes, a lower rate or a quieter machine"
        )
    if resource := next((entry for entry in errors if entry.name == "client_resource"), None):
        void.append(
            f"the client ran out of sockets for {resource.count} requests ({resource.example}); raise ulimit -n"
        )
    if ended_by_service and partial_reason:
        failed.append(partial_reason)
    error_percent = 100.0 * requests.failed / requests.sent if requests.sent else 0.0
    classes = ", ".join(f"{entry.count} {entry.name}" for entry in errors[:3])
    if requests.sent and not requests.ok:
        failed.append(f"no request was served: {classes}")
    elif error_percent > spec.max_error_percent:
        failed.append(
            f"{error_percent:.1f} % of the requests failed, limit {spec.max_error_percent:g} %: {classes}"
        )
    for label, p99, limit in judged_latencies(latency, spec):
        if p99.value_ms is not None and (p99.value_ms > limit or p99.at_least):
            sign = "at least " if p99.at_least else ""
            digits = 0 if limit >= 100 else 1
            failed.append(f"p99 {label} is {sign}{p99.value_ms:,.{digits}f} ms, limit {limit:,.{digits}f} ms")
    if saturation.over_saturated:
        failed.append(saturation.summary)
    if not requests.sent:
        void.append("nothing was sent in the measured part")
    elif partial_reason and not ended_by_service and not failed:
        void.append(partial_reason)
    if unbounded := unbounded_text(latency.ttft):
        warnings.append(f"TTFT {unbounded}")
    if requests.retried_on_stale_connection > max(1, requests.sent // 100):
        warnings.append(
            f"{requests.retried_on_stale_connection} requests were sent again because their idle connection had been closed"
        )
    if cross.agrees is False:
        warnings.append(f"counts disagree: {cross.summary}")
    verdict = RunVerdict.VOID if void else RunVerdict.FAILED if failed else RunVerdict.PASSED
    return verdict, tuple(void + failed), tuple(warnings)
