"""The sentence on what clients saw: it says that no request was lost only if the record proves it."""

import pytest

from gpu_actions.serving.request_account import Gap, RequestAccount
from gpu_actions.tier.client_account import describe


def account(**fields: object) -> RequestAccount:
    return RequestAccount.model_validate({"since_s": 1000.0, "until_s": 1014.0, **fields})


def test_no_request_was_lost_is_said_of_a_complete_record_without_losses() -> None:
    assert describe(account(finished=12, resent=1)) == (
        "in the 14 s of this run no request was lost, 1 was sent on to the other tier, 12 finished"
    )


@pytest.mark.parametrize(
    ("lost", "expected"),
    [({}, "whether one was lost is not known: why"), ({"failed": 1}, "whether more were lost")],
)
def test_an_incomplete_record_never_proves_that_no_request_was_lost(
    lost: dict[str, int], expected: str
) -> None:
    text = describe(account(finished=12, incomplete="why", **lost))
    assert "no request was lost" not in text
    assert expected in text


@pytest.mark.parametrize("loss", ["aborted", "failed"])
def test_any_loss_is_named_and_nothing_else_is_claimed(loss: str) -> None:
    assert "no request was lost" not in describe(account(**{loss: 1}))


def test_the_sentence_names_losses_refusals_the_time_without_an_answer_and_the_capacity() -> None:
    whole = account(
        finished=812,
        refused=41,
        aborted=3,
        resent=20,
        client_left=1,
        open_now=7,
        before_per_s=180.0,
        refused_peak_percent=71.4,
        without_answer=Gap(from_s=1001.0, to_s=1010.4),
    )
    assert describe(whole, 68.4) == (
        "in the 14 s of this run 3 answers broke off, 41 requests were refused with Retry-After, 20 were sent on to the "
        "other tier, 1 client left, 812 finished, 7 still open; 9 s without an answer, 00:16:41 to 00:16:50 UTC; "
        "serving 38 % of the usual 180 requests/s, 71 % refused at peak"
    )


def test_the_capacity_is_said_only_where_both_rates_were_measured_and_something_was_refused() -> None:
    assert "usual" not in describe(account(refused=3, before_per_s=180.0), None)
    assert "usual" not in describe(account(refused=3), 50.0)
    assert "usual" not in describe(account(finished=3, before_per_s=180.0), 50.0)
