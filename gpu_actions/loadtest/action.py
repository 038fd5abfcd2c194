"""The load test action: load through the router (or on one tier), compared with the baseline in force or recorded as one.

The load comes from a child process (`child.run_in_child`). A `stop` drains it and keeps what was measured.
"""

import asyncio
from pathlib import Path

from gpu_actions.action import ActionSpec, PlanRefused, PlanRequest, StepContext, StepFailed, StepResult, step
from gpu_actions.loadtest.baseline import BaselineError, BaselineStore, make_baseline
from gpu_actions.loadtest.child import run_in_child
from gpu_actions.loadtest.comparison import Change, compare_with_current, comparison_file, comparison_text
from gpu_actions.loadtest.knee_action import knee_step
from gpu_actions.loadtest.knee_result import BUDGET_RANGE_S, BUDGET_S
from gpu_actions.loadtest.recent import RecentUnknown, read_recent, tier_in_service
from gpu_actions.loadtest.report import (
    HTML_NAME,
    JSON_NAME,
    PNG_NAME,
    TEXT_NAME,
    files_of,
    summary_lines,
    summary_table,
    summary_text,
)
from gpu_actions.loadtest.request import LoadTestArguments, refuse_above_caps, requested_spec
from gpu_actions.loadtest.result import LoadTestResult, RunVerdict, read_result
from gpu_actions.loadtest.stoppable import run_until_stopped
from gpu_actions.plan import Plan, Step
from gpu_actions.serving.interfaces import RouterError
from gpu_actions.system.files import artifact_of

BASELINE_RUNS = 3
FILES = {PNG_NAME: "load test", HTML_NAME: "report", JSON_NAME: "figures", TEXT_NAME: "summary"}
OVERHEAD_S = 120.0
"""Time beside the load and its drain: start of the child, preflight, figures, picture."""


async def plan_loadtest(request: PlanRequest) -> Plan:
    """Plan one run, or three for a baseline. Refused when nothing serves or the options contradict each other."""
    arguments: LoadTestArguments = request.arguments
    host = request.host
    refuse_above_caps(arguments, host.config.loadtest, host.name)
    if arguments.target == "router":
        try:
            name = await tier_in_service(host)
        except RouterError as error:
            raise PlanRefused([f"the router does not answer: {error}"]) from error
        if name is None:
            raise PlanRefused(
                ["the router sends requests to no tier, so there is nothing to load: see /triage"]
            )
        url = host.router.url
    else:
        name = arguments.target
        url = host.tiers[name].engine.url
        if not await host.tiers[name].engine.is_live():
            raise PlanRefused([f"the tier {name} does not answer at {url}: see /triage"])
    try:
        recent = await read_recent(host, name) if arguments.workload == "recent" else None
    except RecentUnknown as unknown:
        raise PlanRefused([f"workload = recent: {unknown}; take a profile"]) from unknown
    spec, notes = requested_spec(host, name, url, arguments, recent)
    if arguments.find is not None:
        if arguments.baseline:
            raise PlanRefused(["find=knee and baseline= are two different tests: ask for one of them"])
        if arguments.arrival == "ramp":
            raise PlanRefused(["arrival = ramp: find=knee takes a steady load; leave it out"])
        budget_s = arguments.duration or BUDGET_S
        if not BUDGET_RANGE_S[0] <= budget_s <= BUDGET_RANGE_S[1]:
            low, high = BUDGET_RANGE_S
            raise PlanRefused(
                [f"duration = {budget_s:g}: a search for the knee takes {low:g} to {high:g} seconds"]
            )
        cap = host.config.loadtest.qps_cap
        return Plan(
            action="loadtest",
            host=host.name,
            title=f"Knee of {host.name}: the highest rate that holds TTFT p99 {spec.slo_ttft_ms:g} ms",
            steps=(
                knee_step(spec, name, target=arguments.target, max_qps=cap, budget_s=budget_s, notes=notes),
            ),
            options=arguments.model_dump(mode="json"),
        )
    total_s = spec.warmup_s + spec.duration_s
    runs = BASELINE_RUNS if arguments.baseline else 1
    steps = [
        Step(
            id="load" if runs == 1 else f"load{number}",
            verb="loadtest.run",
            title=f"{spec.duration_s:g} s at {spec.target_qps:g} requests/s on {arguments.target}"
            + ("" if runs == 1 else f", run {number} of {runs}"),
            args={
                # each run has its own seed: the spread between runs is what a baseline is for
                "spec": spec.model_copy(update={"seed": spec.seed + number - 1}).model_dump(mode="json", exclude={"api_key"}),
                "tier": name,
                "enforce": runs > 1,
            },
            details=(f"{url} with model {spec.model}, {spec.new_tokens_text} new tokens, prompts "
                     f"{spec.prompt_len_min}-{spec.prompt_len_max}, {spec.arrival} arrivals, seed {spec.seed + number - 1}",
                     *notes),
            timeout_s=total_s + spec.drain_limit_s + OVERHEAD_S,
            expected_s=total_s + 5,
            mutates=False,
        )
        for number in range(1, runs + 1)
    ]  # fmt: skip
    folder = None if request.baselines_dir is None else str(request.baselines_dir)
    if arguments.baseline:
        if folder is None:
            raise PlanRefused(["there is no folder for baselines here: set state_dir in the settings"])
        loads = [one.id for one in steps]
        steps.append(
            Step(
                id="record", verb="loadtest.record", title=f"record the baseline {arguments.baseline}",
                args={"name": arguments.baseline, "baselines_dir": folder, "loads": loads},
                details=(f"{folder}/{arguments.baseline}.json",), timeout_s=60, expected_s=1, mutates=False,
            )
        )  # fmt: skip
    elif folder is not None:
        steps.append(
            Step(
                id="compare", verb="loadtest.compare", title="compare with the baseline", args={"baselines_dir": folder},
                timeout_s=60, expected_s=2, mutates=False,
            )
        )  # fmt: skip
    return Plan(
        action="loadtest",
        host=host.name,
        title=f"Load test of {host.name}: {spec.duration_s:g} s at {spec.target_qps:g} requests/s",
        steps=tuple(steps),
        options=arguments.model_dump(mode="json"),
    )


def _step_result(result: LoadTestResult, folder: Path) -> StepResult:
    return StepResult(
        summary=summary_lines(result)[0],
        data={
            "verdict": result.verdict.value,
            "thread_text": summary_text(result),
            "table": summary_table(result),
            "folder": str(folder),
        },
        artifacts=files_of(folder, FILES),
        warning=result.verdict is not RunVerdict.PASSED,
    )


@step("loadtest.run")
async def run(context: StepContext) -> StepResult:
    """Effect: load on the service. Verified by the measured figures in load_test.json. A complete result of this run is
    not measured again. A run that misses its limits is a result, except where a baseline is being recorded."""
    folder = context.workdir / context.step.id
    try:
        result = read_result(folder / JSON_NAME)
    except ValueError:
        result = None  # none yet, or an incomplete one
    if result is None or result.partial:
        result = await run_until_stopped(
            context,
            lambda spec, stop: run_in_child(
                spec, folder, lambda now: context.report(now.text, now.fraction), stop=stop
            ),
        )
    measured = _step_result(result, folder)
    if context.args["enforce"] and result.verdict is not RunVerdict.PASSED:
        raise StepFailed(
            f"this run cannot become a baseline: {measured.summary}",
            next_action="record it on a good day",
            data=measured.data,
            artifacts=measured.artifacts,
        )
    return measured


@step("loadtest.compare")
async def compare_with_baseline(context: StepContext) -> StepResult:
    """Effect: comparison.json. Verified by the figures of this run. Without a baseline it says how to record one."""
    folder = Path(context.outputs["load"]["folder"])
    try:
        result = read_result(folder / JSON_NAME)
        store = BaselineStore(Path(context.args["baselines_dir"]))
        comparison = await asyncio.to_thread(compare_with_current, result, store, folder)
    except ValueError as error:  # BaselineError is one
        raise StepFailed(f"cannot compare: {error}", next_action="run the load test again") from error
    if comparison is None:
        return StepResult(
            summary=f"no baseline of this host for this workload: /loadtest start {context.host.name} baseline=NAME records one"
        )
    return StepResult(
        summary=f"{comparison.verdict.value} against {comparison.baseline_name}: {'; '.join(comparison.reasons[:2])}",
        data={"verdict": comparison.verdict.value, "thread_text": comparison_text(comparison)},
        artifacts=(comparison_file(folder, "comparison"),),
        warning=comparison.verdict in {Change.REGRESSED, Change.INCONCLUSIVE},
    )


@step("loadtest.record")
async def record(context: StepContext) -> StepResult:
    """Effect: a baseline file, in force for its workload on this host. Verified by reading it back."""
    args = context.args
    store = BaselineStore(Path(args["baselines_dir"]))
    try:
        results = [read_result(Path(context.outputs[load]["folder"]) / JSON_NAME) for load in args["loads"]]
        baseline = make_baseline(args["name"], results)
        path = store.save(baseline, replace=True)
        store.set_current(baseline.name)
        kept = store.get(baseline.name)
    except ValueError as error:
        problem = error if isinstance(error, BaselineError) else f"a run's result cannot be read: {error}"
        raise StepFailed(f"no baseline was recorded: {problem}", next_action="run it again") from error
    if kept != baseline:
        raise StepFailed(
            f"{path} does not contain what was written", next_action="check the disk of the state folder"
        )
    return StepResult(
        summary=f"recorded {baseline.name} from {len(results)} runs; it judges this workload from now on",
        artifacts=(
            artifact_of(path, source="gpu_actions.loadtest.baseline", title=f"baseline {baseline.name}"),
        ),
    )


SPEC = ActionSpec(
    name="loadtest",
    prefix="lt",
    summary="Load the service at a fixed rate and report latency, errors and throughput.",
    arguments=LoadTestArguments,
    plan=plan_loadtest,
    changes_host=False,
    disturbs_service=True,
    title="Load test",
    usages=(
        ("start [host] qps=3 duration=20", "run one; options may be left out"),
        ("start [host] profile=tp", "run a profile: quick, fallback, tp, or one of the settings"),
        ("start [host] workload=recent", "send what the host got in its last minutes: rate and lengths"),
        (
            "start [host] find=knee slo_ttft_ms=500",
            "find the highest rate that holds the limit, in about 75 s",
        ),
        ("plan [host]", "show what it would send"),
        ("status [host]", "show its progress and the figures so far"),
        ("stop [host]", "end it early and keep what was measured"),
    ),
    usage_hint="plan|start|status|stop|compare|baseline [qps=3 duration=20]",
    keeps_partial_results=True,
    pauses_monitors=frozenset({"probe", "regression", "mirror"}),
)
