"""What clients saw during a run, for step results and for people: counted from the router's record, never guessed.

`describe` is pure. Nothing here fails a step: where there is no record, the line says that it is not known, and why.
"""

import asyncio
import logging
import time

from gpu_actions.action import StepContext, StepResult
from gpu_actions.models import Frozen, JsonObject
from gpu_actions.serving.interfaces import RouterError
from gpu_actions.serving.request_account import RequestAccount
from gpu_actions.system.clock import utc_clock
from gpu_actions.tier import run_notes

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 20.0
CAPACITY_MIN_S = 5.0
"""A rate of served requests from a shorter time is not reported."""

SERVES_AGAIN = "serves_again"


class Clients(Frozen):
    """What clients saw since a run began. `served_per_s`: requests/s since the service moved, if that was long enough ago."""

    text: str
    account: RequestAccount | None = None
    served_per_s: float | None = None

    @property
    def data(self) -> JsonObject:
        """Return this account as part of a step's data."""
        return {"clients": self.model_dump(mode="json")}


async def read_clients(context: StepContext) -> Clients:
    """Return what clients have seen since this run began."""
    now_s = time.time()
    since_s = run_notes.began_at_s(context.workdir)
    router = context.host.router
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            account = await router.requests(since_s, now_s)
            served_per_s = None
            note = run_notes.recall(context.workdir, SERVES_AGAIN)
            if note is not None and now_s - note["at_s"] >= CAPACITY_MIN_S:
                served_per_s = (await router.requests(note["at_s"], now_s)).finished_per_s
    except (RouterError, OSError, TimeoutError) as error:
        reason = str(error) or "the record could not be read in time"
        return Clients(text=f"what clients saw is not known: {reason}")
    except Exception:
        logger.exception("the record of requests could not be counted")
        return Clients(text="what clients saw is not known: the record of requests could not be counted")
    return Clients(text=describe(account, served_per_s), account=account, served_per_s=served_per_s)


async def with_clients(context: StepContext, result: StepResult) -> StepResult:
    """Return a step's result with what clients have seen so far, in its summary and its data."""
    clients = await read_clients(context)
    return result.model_copy(
        update={"summary": f"{result.summary}; {clients.text}", "data": {**result.data, **clients.data}}
    )


def keep_serves_again(context: StepContext) -> None:
    """Remember that the traffic has moved now: from here on the rate of served requests is that of the new tier."""
    if run_notes.recall(context.workdir, SERVES_AGAIN) is None:
        run_notes.keep(context.workdir, SERVES_AGAIN, {"at_s": time.time()})


def describe(account: RequestAccount, served_per_s: float | None = None) -> str:
    """Return what clients saw, in one sentence."""
    parts = [
        _count(account.aborted, "answer broke off", "answers broke off"),
        _count(account.failed, "request failed", "requests failed"),
        _count(
            account.refused,
            "request was refused with Retry-After",
            "requests were refused with Retry-After",
        ),
        _count(account.resent, "was sent on to the other tier", "were sent on to the other tier"),
        _count(account.client_left, "client left", "clients left"),
        f"{account.finished} finished",
        f"{account.open_now} still open" if account.open_now else "",
    ]
    proof = ""
    if account.incomplete:
        proof = (
            "; whether more were lost is not known" if account.lost else "; whether one was lost is not known"
        )
        proof += f": {account.incomplete}"
    elif not account.lost:
        parts.insert(0, "no request was lost")
    text = f"in the {account.seconds:.0f} s of this run {', '.join(filter(None, parts))}{proof}"
    return "; ".join(filter(None, [text, _gap(account), capacity_text(account, served_per_s)]))


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}" if number else ""


def _gap(account: RequestAccount) -> str:
    gap = account.without_answer
    if gap is None or gap.seconds < 1:
        return ""
    return f"{gap.seconds:.0f} s without an answer, {utc_clock(gap.from_s)} to {utc_clock(gap.to_s)} UTC"


def capacity_text(account: RequestAccount, served_per_s: float | None) -> str:
    """Return the share of the usual rate that is served now; empty if nothing was refused, because all demand is served."""
    if not account.refused:
        return ""
    parts = []
    if account.before_per_s is not None and served_per_s is not None:
        share = 100 * served_per_s / account.before_per_s
        # Without a limit to what is asked now, more than all of the usual rate is no figure for a capacity.
        much = "" if share >= 100 else f"{share:.0f} % of "
        parts.append(f"serving {much}the usual {account.before_per_s:.3g} requests/s")
    if account.refused_peak_percent is not None:
        parts.append(f"{account.refused_peak_percent:.0f} % refused at peak")
    return ", ".join(parts)
