"""The steps before the tier starts: `restore.check` (is the host healthy?) and `restore.prepare` (a clean environment).

A leftover CUDA_VISIBLE_DEVICES=0 breaks the tier that needs all GPUs, and a leftover NCCL_P2P_DISABLE=1 is itself a cause of a
PCIe-only failover: both are cleared and named.
"""

import itertools
from collections.abc import Mapping, Sequence

from gpu_actions.action import StepContext, StepFailed, StepResult, step
from gpu_actions.config.host import TierConfig
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.host import Host
from gpu_actions.models import Artifact, Finding, Severity, Verdict, VerdictKind
from gpu_actions.restore.watch import keep_known_xids
from gpu_actions.snapshot.model import Snapshot, save_snapshot
from gpu_actions.system.files import artifact_of
from gpu_actions.tier import run_notes
from gpu_actions.tier.condition import read_condition
from gpu_actions.tier.launch import environment_of
from gpu_actions.tier.standby import DEVICES
from gpu_actions.tier.stop import unfreeze_own
from gpu_actions.tier.traffic import DIRECT_PROBE_S, ready_router, route_to
from gpu_actions.triage.baselines import TriageBaseline
from gpu_actions.triage.host_verdict import baseline_of, judge_host
from gpu_actions.triage.judge import judge

CLEARED = ("NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "CUDA_LAUNCH_BLOCKING")
"""Debugging variables that a healthy full tier never needs. Others (NCCL_SOCKET_IFNAME, ...) may be intended."""


def too_few_devices(value: str | None, gpus: int) -> bool:
    """Return True if CUDA_VISIBLE_DEVICES names fewer GPUs than the tier needs. False if unset, or for a tier on the CPU."""
    if value is None or gpus == 0:
        return False
    return len([part for part in value.split(",") if part.strip()]) < gpus


def leftovers_of(environment: Mapping[str, str], tier: TierConfig) -> tuple[str, ...]:
    """Return the names of the variables in an environment that a full tier must not have."""
    found = [name for name in CLEARED if name in environment]
    if too_few_devices(environment.get(DEVICES), tier.gpus):
        found.append(DEVICES)
    return tuple(found)


def blocks(verdict: Verdict, *, override_reason: str) -> str | None:
    """Return why a verdict forbids a restore, or None. Missing evidence does not count as healthy."""
    if override_reason or verdict.verdict in (VerdictKind.HEALTHY, VerdictKind.WATCH):
        return None
    word = "is not healthy" if verdict.verdict is VerdictKind.FALL_BACK else "cannot be judged"
    return f"the host {word} ({verdict.cause}): {verdict.summary}"


def deep_unread(verdict: Verdict) -> str:
    """Return why the deep probe could not finish; empty if it did or was not requested."""
    return next((finding.summary for finding in verdict.findings if finding.id == "deep.unread"), "")


def without_deep(
    snapshot: Snapshot, limits: TriageThresholds | None = None, baseline: TriageBaseline | None = None
) -> Verdict:
    """Judge a snapshot by its passive evidence alone."""
    collectors = {name: outcome for name, outcome in snapshot.collectors.items() if name != "deep"}
    passive = snapshot.model_copy(update={"deep": None, "collectors": collectors})
    return judge(passive, limits, baseline)


@step("restore.check")
async def check(context: StepContext) -> StepResult:
    """Effect: none but triage's own probes. Verified by the verdict over a saved snapshot."""
    host, args = context.host, context.args
    run_notes.began_at_s(context.workdir)
    override = str(args["override_reason"])
    await keep_known_xids(context)
    context.report("triage" + (", with deep probes" if args["deep"] else ""), None)
    snapshot, verdict = await judge_host(host, deep=bool(args["deep"]))
    path = save_snapshot(snapshot, context.workdir / "snapshot.json")
    artifact = artifact_of(path, source="gpu_actions.triage", title="snapshot before the restore")
    if host.whole is not None:
        return _checked_rung(context, verdict, artifact)
    reason = blocks(verdict, override_reason=override)
    unread = deep_unread(verdict)
    if reason is not None and unread:
        # The fallback holds memory that the probe needs on every GPU, so the passive evidence decides.
        verdict = without_deep(snapshot, host.thresholds, baseline_of(host))
        reason = blocks(verdict, override_reason=override)
    if reason is not None:
        raise StepFailed(
            reason,
            next_action=f"repair it ({verdict.action or 'see /triage'}), or override with a reason: "
            f"/restore start {host.name} override_reason=...",
            artifacts=(artifact,),
            findings=verdict.findings,
            data={"verdict": verdict.verdict.value, "cause": verdict.cause},
        )
    healthy = verdict.verdict is VerdictKind.HEALTHY
    summary = f"{verdict.verdict.value}: {verdict.summary}"
    if not healthy and override:
        summary += f"; overridden: {override}"
    if unread:
        summary += f"; judged without the deep probe: {unread}"
    return StepResult(
        summary=summary,
        data={"verdict": verdict.verdict.value, "cause": verdict.cause, "override_reason": override},
        findings=verdict.findings,
        artifacts=(artifact,),
        verdict=verdict,
        warning=not healthy or bool(unread),
    )


def rung_problems(verdict: Verdict, gpus: Sequence[str], *, needs_links: bool) -> tuple[str, ...]:
    """Return why these GPUs, by UUID, cannot carry a rung now. What the rest of the host has is no matter of a step up."""
    known = {gpu.uuid: gpu for gpu in verdict.gpus}
    problems = [f"{uuid} could not be judged" for uuid in gpus if uuid not in known]
    rows = [known[uuid] for uuid in gpus if uuid in known]
    problems += [f"GPU {row.index}: {row.ruled_out}" for row in rows if row.ruled_out]
    apart = [
        f"GPU {one.index} does not reach GPU {other.index} over NVLink"
        for one, other in itertools.combinations(rows, 2)
        if needs_links and other.index not in one.reaches
    ]
    return (*problems, *apart)


def _checked_rung(context: StepContext, verdict: Verdict, artifact: Artifact) -> StepResult:
    """Return the result for a step up, where the GPUs of the rung must be well and the rest of the host is known not to be."""
    gpus = [str(uuid) for uuid in context.args.get("gpus", ())]
    problems = rung_problems(verdict, gpus, needs_links=bool(context.args.get("needs_links")))
    if problems:
        raise StepFailed(
            f"{context.host.tp.label} cannot be carried now: {'; '.join(problems)}",
            next_action="the smaller rung goes on serving; see /triage",
            artifacts=(artifact,),
            findings=verdict.findings,
        )
    where = f"its {len(gpus)} GPUs have no fault that rules them out" if gpus else "it runs on the CPU"
    return StepResult(
        summary=f"{context.host.tp.label}: {where}",
        data={"verdict": verdict.verdict.value, "cause": verdict.cause},
        findings=verdict.findings,
        artifacts=(artifact,),
    )


@step("restore.prepare")
async def prepare(context: StepContext) -> StepResult:
    """Effect: the tier may start again, without a scope, and gets no request yet. Verified by reading its freeze back."""
    host = context.host
    tp = host.tp
    await ready_router(host.router)
    state = await tp.unit.state()
    # tp may already run, for example during a repair. Its weight must be 0 before anything else.
    server = await host.router.server(tp.config.server)
    if server.weight:
        fallback = await host.fallback.unit.state()
        reading = await read_condition(host.fallback, fallback, stall_s=DIRECT_PROBE_S)
        if reading.condition.serves:
            await route_to(host, host.fallback, tp)
        elif state.active and server.admin_state == "ready":
            raise StepFailed(
                "the fallback does not generate, so tp keeps its traffic",
                next_action=f"run /triage {host.name} to see whether tp serves already",
            )
    await host.router.drain(tp.config.server, allow_zero_total=True)
    await unfreeze_own(tp)
    scoped = await tp.unit.scope()
    unset = [str(name) for name in context.args["unset"]]
    variables = {str(name): str(value) for name, value in context.args.get("variables", {}).items()}
    await tp.unit.set_scope(variables, unset=unset)
    after = await tp.unit.state()
    if after.frozen:
        raise StepFailed(
            f"{tp.label} is still frozen: {after.frozen_reason}",
            next_action="another operator froze it: ask them, then plan the restore again",
        )
    cleared = [
        *(f"{name} (scope)" for name in scoped),
        *(f"{name} (configuration)" for name in context.args["found"]),
    ]
    was = f"unfrozen ({state.frozen_reason})" if state.frozen else "was not frozen"
    return StepResult(
        summary=f"{tp.label} {was}; cleared: {', '.join(cleared) if cleared else 'no leftovers found'}",
        data={"was_frozen": state.frozen, "cleared": cleared, "unset": unset},
    )


@step("restore.environment")
async def environment(context: StepContext) -> StepResult:
    """Effect: none. Verified by the environment of the running processes: what was cleared must be gone."""
    finding = await _leftover_finding(context.host)
    if finding is None:
        return StepResult(summary="no leftover CUDA_VISIBLE_DEVICES or NCCL variable in its processes")
    return StepResult(summary=finding.summary, findings=(finding,), warning=True)


async def _leftover_finding(host: Host) -> Finding | None:
    """Check the main process only: an engine assigns each worker its GPU by CUDA_VISIBLE_DEVICES itself."""
    pid = (await host.tp.unit.state()).main_pid
    if pid is None:
        return None
    variables = environment_of(pid)
    if variables is None:
        return Finding(
            id="serving.environment_unread",
            component="serving",
            severity=Severity.UNKNOWN,
            summary="no permission to read the environment of the tier's process, so leftovers are unknown",
            action="run gpu-oncall as root or as the tier's user",
            subject="tp",
        )
    names = leftovers_of(variables, host.tp.config)
    if not names:
        return None
    return Finding(
        id="serving.leftover_environment",
        component="serving",
        severity=Severity.WATCH,
        summary=f"the tier runs with a leftover {', '.join(sorted(names))}",
        evidence={"processes": {str(pid): list(names)}},
        action="remove it from the unit's own configuration",
        subject="tp",
    )
