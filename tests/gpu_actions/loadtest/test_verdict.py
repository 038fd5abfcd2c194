"""The verdict of a load test as a table: one change to a run that passes, and the verdict and texts that must follow."""

from typing import Any

import pytest

from gpu_actions.loadtest.result import (
    CrossCheck,
    Distribution,
    ErrorClass,
    Latency,
    Lateness,
    Percentile,
    Requests,
    RunVerdict,
    Saturation,
)
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.statistics import SHARES
from gpu_actions.loadtest.verdict import judge

LIMITS = {"slo_ttft_ms": 500, "slo_e2e_ms": 8000, "max_error_percent": 1}


def distribution(p99_ms: float | None, *, count: int = 1000, at_least: bool = False) -> Distribution:
    shares = {name: Percentile(value_ms=p99_ms, at_least=at_least) for name, _ in SHARES}
    return Distribution(count=count, **shares)


def latency(**changes: Distribution) -> Latency:
    usual = {
        "ttft": distribution(400),
        "e2e": distribution(7000),
        "itl": distribution(30),
        "tpot": distribution(30),
        "ttft_from_send": distribution(400),
        "e2e_from_send": distribution(7000),
    }
    return Latency(**{**usual, **changes})


def requests(**changes: int) -> Requests:
    usual = {
        "scheduled": 1000, "sent": 1000, "ok": 1000, "good": 1000, "failed": 0, "unfinished": 0, "unsent": 0,
        "retried_on_stale_connection": 0,
    }  # fmt: skip
    return Requests(**{**usual, **changes})


def errors(*counts: tuple[str, int]) -> tuple[ErrorClass, ...]:
    return tuple(
        ErrorClass(name=name, meaning="m", count=count, percent=1, example="EMFILE") for name, count in counts
    )


def run(**changes: Any) -> tuple[RunVerdict, tuple[str, ...], tuple[str, ...]]:
    spec = LoadSpec(url="http://127.0.0.1:1", model="m", **{**LIMITS, **changes.pop("limits", {})})
    usual: dict[str, Any] = {
        "requests": requests(),
        "latency": latency(),
        "lateness": Lateness(p50_ms=1, p99_ms=2, max_ms=3, limit_ms=10, over=False),
        "saturation": Saturation(
            over_saturated=False, backlog_growth_qps=0, sustained_qps=None, shed_percent=0, summary="fine"
        ),
        "errors": (),
        "cross": CrossCheck(agrees=True, client_requests_ok=1, client_output_tokens=1, summary="agree"),
        "partial_reason": None,
        "ended_by_service": False,
    }
    return judge(spec=spec, **{**usual, **changes})


STOPPED = "stopped after 12 s of 60 s"
QUIETER = "use more processes, a lower rate or a quieter machine"
LOST = errors(("refused", 9), ("reset", 8), ("timeout", 7), ("cut", 6))
TABLE: dict[str, tuple[dict[str, Any], str, tuple[str, ...], tuple[str, ...]]] = {
    "a run within its limits": ({}, "passed", (), ()),
    "a client that was late": (
        {"lateness": Lateness(p50_ms=1, p99_ms=44.4, max_ms=90, limit_ms=10, over=True)},
        "void",
        (f"the client was the bottleneck: p99 lateness 44.4 ms, limit 10.0 ms; {QUIETER}",),
        (),
    ),
    "a client without sockets": (
        {"errors": errors(("refused", 1), ("client_resource", 3))},
        "void",
        ("the client ran out of sockets for 3 requests (EMFILE); raise ulimit -n",),
        (),
    ),
    "a service that died": (
        {"partial_reason": "the service died", "ended_by_service": True}, "failed", ("the service died",), ()
    ),
    "a service that ended a whole run": ({"ended_by_service": True}, "passed", (), ()),
    "a run stopped by request": ({"partial_reason": STOPPED}, "void", (STOPPED,), ()),
    "a failing run stopped by request": (
        {"partial_reason": STOPPED, "latency": latency(ttft=distribution(501))},
        "failed",
        ("p99 TTFT is 501 ms, limit 500 ms",),
        (),
    ),
    "no request served": (
        {"requests": requests(ok=0, failed=1000), "errors": LOST},
        "failed",
        ("no request was served: 9 refused, 8 reset, 7 timeout",),
        (),
    ),
    "errors at the limit": ({"requests": requests(failed=10), "errors": LOST}, "passed", (), ()),
    "errors above the limit": (
        {"requests": requests(failed=11), "errors": LOST},
        "failed",
        ("1.1 % of the requests failed, limit 1 %: 9 refused, 8 reset, 7 timeout",),
        (),
    ),
    "latencies at their limits": (
        {"latency": latency(ttft=distribution(500), e2e=distribution(8000))}, "passed", (), ()
    ),
    "answers above the limit": (
        {"latency": latency(e2e=distribution(12345.6))}, "failed", ("p99 E2E is 12,346 ms, limit 8,000 ms",), ()
    ),
    "a first token that never came": (
        {"latency": latency(ttft=distribution(90, at_least=True)), "limits": {"slo_ttft_ms": 100}},
        "failed",
        ("p99 TTFT is at least 90 ms, limit 100 ms",),
        (),
    ),
    "a small limit, judged by a tenth": (
        {"latency": latency(itl=distribution(60.16)), "limits": {"slo_itl_ms": 60}},
        "failed",
        ("p99 ITL is 60.2 ms, limit 60.0 ms",),
        (),
    ),
    "a gap between tokens within its limit": ({"limits": {"slo_itl_ms": 60}}, "passed", (), ()),
    "time per token in place of the answer's": (
        {
            "latency": latency(e2e=distribution(90000), e2e_per_token=distribution(51.26)),
            "limits": {"slo_e2e_per_token_ms": 50},
        },
        "failed",
        ("p99 E2E per token is 51.3 ms, limit 50.0 ms",),
        (),
    ),
    "a limit per token that was not measured": (
        {"latency": latency(e2e=distribution(9000)), "limits": {"slo_e2e_per_token_ms": 50}},
        "failed",
        ("p99 E2E is 9,000 ms, limit 8,000 ms",),
        (),
    ),
    "a measured time per token without a limit": (
        {"latency": latency(e2e_per_token=distribution(9000))}, "passed", (), ()
    ),
    "no latency measured": ({"latency": latency(ttft=distribution(None))}, "passed", (), ()),
    "a growing backlog": (
        {
            "saturation": Saturation(
                over_saturated=True, backlog_growth_qps=2, sustained_qps=8, shed_percent=0, summary="too much"
            )
        },
        "failed",
        ("too much",),
        (),
    ),
    "nothing was sent where no error is allowed": (
        {"requests": requests(sent=0, ok=0), "limits": {"max_error_percent": 0}},
        "void",
        ("nothing was sent in the measured part",),
        (),
    ),
    "nothing was sent": (
        {"requests": requests(sent=0, ok=0), "partial_reason": STOPPED},
        "void",
        ("nothing was sent in the measured part",),
        (),
    ),
    "a void run that also failed": (
        {
            "lateness": Lateness(p50_ms=1, p99_ms=44, max_ms=90, limit_ms=10, over=True),
            "latency": latency(ttft=distribution(501)),
        },
        "void",
        (
            f"the client was the bottleneck: p99 lateness 44.0 ms, limit 10.0 ms; {QUIETER}",
            "p99 TTFT is 501 ms, limit 500 ms",
        ),
        (),
    ),
    "too few requests for a p99": (
        {"latency": latency(ttft=distribution(400, count=200))},
        "passed",
        (),
        ("TTFT p99 cannot be bounded from above by 200 requests: p99 needs 368",),
    ),
    "ten requests sent again": ({"requests": requests(retried_on_stale_connection=10)}, "passed", (), ()),
    "eleven requests sent again": (
        {"requests": requests(retried_on_stale_connection=11)},
        "passed",
        (),
        ("11 requests were sent again because their idle connection had been closed",),
    ),
    "ten of 1099 requests sent again": (
        {"requests": requests(sent=1099, retried_on_stale_connection=10)}, "passed", (), ()
    ),
    "one of ten requests sent again": (
        {"requests": requests(sent=10, retried_on_stale_connection=1)}, "passed", (), ()
    ),
    "two of ten requests sent again": (
        {"requests": requests(sent=10, retried_on_stale_connection=2)},
        "passed",
        (),
        ("2 requests were sent again because their idle connection had been closed",),
    ),
    "counts that disagree": (
        {"cross": CrossCheck(agrees=False, client_requests_ok=1, client_output_tokens=1, summary="20 and 40")},
        "passed",
        (),
        ("counts disagree: 20 and 40",),
    ),
    "counts that cannot be read": (
        {"cross": CrossCheck(agrees=None, client_requests_ok=1, client_output_tokens=1, summary="no page")},
        "passed",
        (),
        (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_a_run_of_this_kind_gets_this_verdict_with_these_reasons_and_warnings(name: str) -> None:
    changes, verdict, reasons, warnings = TABLE[name]
    assert run(**changes) == (RunVerdict(verdict), reasons, warnings)
