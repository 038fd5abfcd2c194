"""The verdict of a run: passed, failed or void, with the reasons as sentences. Pure."""

from gpu_actions.loadtest.result import (
    CrossCheck,
    ErrorClass,
    Latency,
    Lateness,
    Requests,
    RunVerdict,
    Saturation,
)
from gpu_actions.loadtest.spec import LoadSpec


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
    for label, p99, limit in (
        ("TTFT", latency.ttft.p99, spec.slo_ttft_ms),
        ("E2E", latency.e2e.p99, spec.slo_e2e_ms),
    ):
        if p99.value_ms is not None and (p99.value_ms > limit or p99.at_least):
            sign = "at least " if p99.at_least else ""
            failed.append(f"p99 {label} is {sign}{p99.value_ms:,.0f} ms, limit {limit:,.0f} ms")
    if saturation.over_saturated:
        failed.append(saturation.summary)
    if not requests.sent:
        void.append("nothing was sent in the measured part")
    elif partial_reason and not ended_by_service and not failed:
        void.append(partial_reason)
    confidence = latency.ttft.p99.confidence_percent
    if confidence is not None and confidence < 95:
        warnings.append(
            f"{latency.ttft.count} requests show the true p99 with {confidence:.0f} % confidence; 299 give 95 %"
        )
    if requests.retried_on_stale_connection > max(1, requests.sent // 100):
        warnings.append(
            f"{requests.retried_on_stale_connection} requests were sent again because their idle connection had been closed"
        )
    if cross.agrees is False:
        warnings.append(f"counts disagree: {cross.summary}")
    verdict = RunVerdict.VOID if void else RunVerdict.FAILED if failed else RunVerdict.PASSED
    return verdict, tuple(void + failed), tuple(warnings)
