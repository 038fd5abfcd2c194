"""What an account says of requests whose truth is known: counts, the usual rate, the peak, the time without an answer."""

from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.serving.request_account import Ending, Gap, RequestCounter, RequestEnd, Spans

SINCE = 1000.0


def request(arrived: float, ended: float, ending: Ending = Ending.FINISHED, **more: object) -> RequestEnd:
    first = arrived if ending in (Ending.FINISHED, Ending.ABORTED) else None
    return RequestEnd(arrived, ended, ending, **{"first_byte_s": first, **more})  # type: ignore[arg-type]


def counter(*requests: RequestEnd, until: float = 1100.0) -> RequestCounter:
    counted = RequestCounter(SINCE, until)
    for one in sorted(requests, key=lambda one: one.ended_s):
        counted.add(one)
    return counted


def test_each_ending_is_counted_once_and_only_inside_the_window() -> None:
    inside = [request(1001, 1002, ending) for ending in Ending]
    outside = [request(1, 2, ending) for ending in Ending] + [request(1200, 1201)]
    account = counter(*inside, *outside).account()
    assert [getattr(account, ending.value) for ending in Ending] == [1] * 5
    assert account.lost == 2


def test_a_resent_request_counts_by_how_it_ended_and_as_resent() -> None:
    account = counter(
        request(1001, 1002, resent=True, server="b"),
        request(1001, 1002, Ending.REFUSED, resent=True, server="b"),
    ).account()
    assert (account.finished, account.refused, account.resent) == (1, 1, 2)


def test_own_requests_are_no_clients_but_are_work_that_the_tier_did() -> None:
    account = counter(request(1001, 1002), request(1001, 1002, own=True), until=1010).account()
    assert (account.finished, account.own_finished, account.finished_per_s) == (1, 1, 0.2)


def test_the_usual_rate_ends_where_the_trouble_began() -> None:
    usual = [request(900 + n / 10, 900.05 + n / 10) for n in range(600)]  # 10/s until 960, then nothing
    hung = [request(955, 1010, Ending.ABORTED, first_byte_s=955.5)]
    account = counter(*usual, *hung).account()
    assert account.without_answer is not None
    assert abs(account.without_answer.from_s - 959.95) < 0.01
    assert account.without_answer.to_s == 1010
    assert account.before_per_s is not None
    assert abs(account.before_per_s - 10) < 0.3


def test_the_usual_rate_is_unknown_from_a_few_requests() -> None:
    assert counter(*(request(900 + n, 901 + n) for n in range(9))).account().before_per_s is None


def test_the_peak_is_the_worst_five_seconds() -> None:
    calm = [request(1050 + n / 10, 1050 + n / 10) for n in range(100)]
    worst = [request(1020 + n / 10, 1020 + n / 10, Ending.REFUSED) for n in range(30)]
    served = [request(1022.5, 1022.5) for _ in range(10)]
    assert counter(*calm, *worst, *served).account().refused_peak_percent == 75


def test_a_quiet_service_has_no_time_without_an_answer() -> None:
    assert counter(request(1010, 1011), request(1090, 1091)).account().without_answer is None


def test_the_time_without_an_answer_begins_when_a_client_waits_for_one() -> None:
    account = counter(request(1001, 1002), request(1040, 1070, first_byte_s=1060)).account()
    assert account.without_answer == Gap(from_s=1040, to_s=1060)


def test_refused_requests_are_time_without_an_answer() -> None:
    refused = [request(1020 + n, 1020.001 + n, Ending.REFUSED) for n in range(10)]
    account = counter(request(1000, 1019), *refused, request(1035, 1036)).account()
    assert account.without_answer == Gap(from_s=1020, to_s=1029.001)


def test_a_time_without_an_answer_that_was_over_before_the_window_is_not_reported() -> None:
    account = counter(request(800, 900, Ending.FAILED), request(950, 1050)).account()
    assert account.without_answer is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=30))
def test_spans_are_their_union(pairs: list[tuple[int, int]]) -> None:
    spans = Spans()
    ordered = sorted(((begin, begin + length) for begin, length in pairs), key=lambda span: span[1])
    for begin, end in ordered:
        spans.add(begin, end)
    points = {point / 2 for begin, end in ordered for point in range(2 * begin, 2 * end + 1)}
    covered = {point / 2 for begin, end in spans.spans for point in range(int(2 * begin), int(2 * end) + 1)}
    assert covered == points
    assert all(a[1] < b[0] for a, b in zip(spans.spans, spans.spans[1:], strict=False))
