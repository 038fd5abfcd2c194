"""The steps that prove the returning tier: `restore.loadtest` off the router, `restore.compare` with this host's baseline.

Without a baseline a person must accept that: beforehand by an option, or while the step waits, by `next`.
"""

import asyncio
import time
from pathlib import Path

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.config.host import LoadPolicy
from gpu_actions.host import Host
from gpu_actions.loadtest.baseline import Baseline, BaselineError, BaselineStore
from gpu_actions.loadtest.comparison import Change, compare, comparison_text
from gpu_actions.loadtest.run import read_result
from gpu_actions.restore.shift import read_orders
from gpu_actions.system.files import artifact_of, write_atomically
from gpu_actions.tier.under_load import load_test

FOLDER = "restore_validation"
ASK_EVERY_S = 0.5


def likely_baseline(host: Host, folder: Path | None) -> str | None:
    """The name of a recorded baseline that the restore's load test will probably match; None when there is none.

    A guess for the plan: the exact workload is known only after the run, and the comparison itself decides.
    """
    if folder is None:
        return None
    store, load = BaselineStore(folder), host.config.restore.load
    for name in store.names():
        try:
            baseline = store.get(name)
        except BaselineError:
            continue  # the comparison says it in full, if this is the one that it needs
        if isinstance(baseline, Baseline) and store.is_current(name):
            workload = baseline.workload
            same = (workload.model, workload.target_qps, workload.max_new_tokens) == (
                host.tp.engine.model,
                load.target_qps,
                load.max_new_tokens,
            )
            if same:
                return name
    return None


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
    data = tested.data
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
async def compare_with_baseline(context: StepContext) -> StepResult:
    """Effect: a file with the comparison. Verified: the run of this restore is compared figure by figure with the baseline in
    force for its host and workload. A regression fails; what cannot be said is put to a person."""
    args = context.args
    try:
        result = read_result(context.workdir / FOLDER / "load_test.json")
    except ValueError as error:
        return await _ask(context, f"there is no load test to compare: {error}")
    try:
        folder = args["baselines_dir"]
        baseline = None if folder is None else BaselineStore(Path(folder)).current_for(result)
    except BaselineError as error:
        return await _ask(context, f"the baseline cannot be read: {error}")
    if baseline is None:
        why = "there is no baseline of this host for this workload"
        if args["accepted"]:
            return StepResult(summary=f"{why}; accepted beforehand (accept_no_baseline)", warning=True)
        return await _ask(context, why)
    comparison = await asyncio.to_thread(compare, result, baseline)
    text = comparison_text(comparison)
    path = write_atomically(
        context.workdir / FOLDER / "comparison.json", comparison.model_dump_json(indent=1)
    )
    artifact = artifact_of(
        path, source="gpu_actions.loadtest.comparison", title="comparison with the baseline"
    )
    data = {"verdict": comparison.verdict.value, "baseline": comparison.baseline_name, "thread_text": text}
    summary = (
        f"{comparison.verdict.value} against {comparison.baseline_name}: {'; '.join(comparison.reasons[:3])}"
    )
    if comparison.verdict is Change.REGRESSED:
        raise StepFailed(
            summary,
            next_action="tp gets no traffic while it is worse than its baseline: see /triage and the report",
            data=data,
            artifacts=(artifact,),
        )
    if not comparison.passes_gate:
        asked = await _ask(context, summary)
        return asked.model_copy(update={"data": data, "artifacts": (artifact,)})
    return StepResult(summary=summary, data=data, artifacts=(artifact,))


async def _ask(context: StepContext, why: str) -> StepResult:
    """Put an open question to a person, where traffic depends on it; else it is a warning."""
    if not context.args["enforce"]:
        return StepResult(summary=why, warning=True)
    accepted = await wait_for_acceptance(context, why, wait_s=float(context.args["wait_s"]))
    return StepResult(summary=accepted, warning=True)
