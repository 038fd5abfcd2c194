"""The steps that prove the returning tier: `restore.loadtest` off the router, `restore.compare` with this host's baseline.

Without a baseline a person must accept that: by an option beforehand, or by `next` while the step waits.
"""

import asyncio
import time
from pathlib import Path

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.config.policies import LoadPolicy
from gpu_actions.host import Host
from gpu_actions.loadtest.baseline import Baseline, BaselineError, BaselineStore
from gpu_actions.loadtest.comparison import Change, compare_with_current, comparison_file, comparison_text
from gpu_actions.loadtest.recent import RecentUnknown, read_recent, tier_in_service
from gpu_actions.loadtest.request import lower_to_caps
from gpu_actions.loadtest.result import read_result
from gpu_actions.restore.shift import read_orders
from gpu_actions.serving.interfaces import RouterError
from gpu_actions.tier.under_load import load_test

FOLDER = "restore_validation"
ASK_EVERY_S = 0.5


def likely_baseline(host: Host, folder: Path | None, load: LoadPolicy | None = None) -> str | None:
    """Return the name of the baseline that the restore's load test will probably be compared with, or None.

    The plan can only guess: the exact workload is known after the run, and the comparison decides.
    """
    if folder is None:
        return None
    store, load = BaselineStore(folder), load or host.config.restore.load
    for name in store.names():
        try:
            baseline = store.get(name)
        except BaselineError:
            continue  # the comparison reports it, if it needs this one
        if isinstance(baseline, Baseline) and store.is_current(name):
            workload = baseline.workload
            same = (
                workload.model, workload.target_qps, workload.max_new_tokens, workload.prompt_lengths
            ) == (host.tp.engine.model, load.target_qps, load.max_new_tokens, load.prompt_lengths)  # fmt: skip
            if same:
                return name
    return None


async def restore_load(host: Host) -> tuple[LoadPolicy, tuple[str, ...]]:
    """Return the load of the test before traffic, within the caps of the host, and what a person should know of it."""
    policy = host.config.restore
    load = policy.load
    notes: tuple[str, ...] = ()
    if policy.load_workload == "recent":
        try:
            tier = await tier_in_service(host)
            if tier is None:
                raise RecentUnknown("the router sends requests to no tier")
            recent = await read_recent(host, tier)
        except (RecentUnknown, RouterError) as error:
            notes = (f"the load of the settings, because the recent traffic is not known: {error}",)
        else:
            load = recent.load(policy.load)
            notes = (recent.text, *recent.notes)
    load, lowered = lower_to_caps(load, host.config.loadtest, host.name)
    return load, (*notes, *lowered)


@step("restore.loadtest")
async def loadtest(context: StepContext) -> StepResult:
    """Effect: load on the tier itself, not through the router. Verified by the measured figures. A missed limit fails the
    step if no traffic has moved yet."""
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
            f"{tp.label} under load: {tested.summary}",
            next_action="tp gets no traffic; read the report and run /triage",
            data=data,
            artifacts=tested.artifacts,
        )
    return StepResult(
        summary=tested.summary, data=data, artifacts=tested.artifacts, warning=not tested.passed
    )


async def wait_for_acceptance(context: StepContext, why: str, *, wait_s: float) -> str:
    """Wait until a person accepts with `next`. Raises StepFailed on abort, or if nobody decides in time."""
    started = time.monotonic()
    while True:
        orders = await read_orders(context)
        if orders.abort:
            raise StepFailed(f"{why}; a person pressed abort", next_action="the fallback goes on serving")
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
    """Effect: a file with the comparison. Verified figure by figure against the current baseline of this host and workload. A
    regression fails the step; an inconclusive comparison waits for a person."""
    args = context.args
    try:
        result = read_result(context.workdir / FOLDER / "load_test.json")
    except ValueError as error:
        return await _ask(context, f"there is no load test to compare: {error}")
    try:
        store = None if args["baselines_dir"] is None else BaselineStore(Path(args["baselines_dir"]))
        folder = context.workdir / FOLDER
        comparison = (
            None if store is None else await asyncio.to_thread(compare_with_current, result, store, folder)
        )
    except BaselineError as error:
        return await _ask(context, f"the baseline cannot be read: {error}")
    if comparison is None:
        why = "there is no baseline of this host for this workload"
        if args["accepted"]:
            return StepResult(summary=f"{why}; accepted in advance (accept_no_baseline)", warning=True)
        return await _ask(context, why)
    text = comparison_text(comparison)
    artifact = comparison_file(folder, "comparison with the baseline")
    data = {"verdict": comparison.verdict.value, "baseline": comparison.baseline_name, "thread_text": text}
    summary = (
        f"{comparison.verdict.value} against {comparison.baseline_name}: {'; '.join(comparison.reasons[:3])}"
    )
    if comparison.verdict is Change.REGRESSED:
        raise StepFailed(
            summary,
            next_action="tp gets no traffic while it is worse than its baseline: run /triage and read the report",
            data=data,
            artifacts=(artifact,),
        )
    if not comparison.passed:
        asked = await _ask(context, summary)
        return asked.model_copy(update={"data": data, "artifacts": (artifact,)})
    return StepResult(summary=summary, data=data, artifacts=(artifact,))


async def _ask(context: StepContext, why: str) -> StepResult:
    """Ask a person if traffic depends on the answer; otherwise return a warning."""
    if not context.args["enforce"]:
        return StepResult(summary=why, warning=True)
    accepted = await wait_for_acceptance(context, why, wait_s=float(context.args["wait_s"]))
    return StepResult(summary=accepted, warning=True)
