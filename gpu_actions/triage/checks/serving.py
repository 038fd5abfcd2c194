"""Does the tier serve? The engine's counters, the synthetic completion and its processes."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from gpu_actions.models import Finding, VerdictKind
from gpu_actions.serving.condition import Activity, Condition
from gpu_actions.snapshot.collectors.completion import CompletionReading
from gpu_actions.snapshot.progress import READS, TierProgress
from gpu_actions.snapshot.replicas import hung_replicas, part_of, replicas_of
from gpu_actions.triage.check import Check, CheckContext
from gpu_actions.triage.checks.collective import is_paused
from gpu_actions.triage.checks.completion import (
    COMPLETION,
    OVERLOAD,
    TWICE,
    age_of,
    front_is_silent,
    summary_of,
)
from gpu_actions.triage.checks.crashes import crash_cause, dead_rank, exit_text
from gpu_actions.triage.culprit import culprits_of
from gpu_actions.triage.rule import CRITICAL, INFO, OK, UNKNOWN, WATCH, Rules, rule
from gpu_actions.triage.suspicions import suspicions_of

RULES = Rules(
    rule("serving.ok", OK, "the tier generates tokens, or has no request", source=f"{COMPLETION}, /metrics"),
    rule(
        "serving.down", CRITICAL, "the tier should run, but nothing listens or its main process is gone",
        "Start the fallback, then read the engine's log.", source="connection refused; process tree",
        cause="engine_down",
    ),
    rule(
        "serving.starting", WATCH,
        "nothing listens yet, or it answers 503 and says that it loads; the tier was started a short while ago",
        "Wait until it is ready, then run triage again.", source=f"process age, {COMPLETION}", cause="engine_down",
        threshold="starting_s",
    ),
    rule(
        "serving.prefill", INFO,
        "no token was generated because a long prompt is read: the KV cache fills, or the tier's processors work",
        source=f"{TWICE}, NVML (utilisation and power, by process), /proc",
    ),
    rule(
        "serving.paused", CRITICAL,
        "the tier is paused as a whole (docker pause, podman pause, a freezer): it answers nothing until it is resumed",
        "Resume it: its requests go on. If it must stay paused, start the fallback.",
        source="the unit's driver; the freezer of its control group", cause="engine_paused", verdict=VerdictKind.WATCH,
        when_broken=VerdictKind.FALL_BACK,
    ),
    rule(
        "serving.wedged", CRITICAL,
        "the engine reports no request, but the router held some open on it all the time, and a completion was not answered",
        "Start the fallback. The engine lost its requests: restart it once its evidence is saved.",
        source=f"{TWICE}, {COMPLETION}, router's sessions", cause="engine_stalled",
    ),
    rule(
        "serving.flat", WATCH,
        "requests run, but no token was generated within the window; a completion was answered, or none was sent",
        "Run triage again with a longer window: a long prefill looks like this.", source=TWICE,
        cause="engine_stalled",
    ),
    rule(
        "serving.replica_flat", CRITICAL,
        "a data-parallel replica holds requests and generates no token, or leaves a completion unanswered, while others serve",
        "Run triage again with a longer window. If it lasts, restart that replica: the others still serve.",
        source=f"{TWICE} and {COMPLETION}, by replica", cause="engine_stalled", verdict=VerdictKind.WATCH,
    ),
    rule(
        "serving.replica_down", CRITICAL, "nothing listens at the address of a replica, while others serve",
        "Read its log and start it again: the others still serve.", source="connection refused, by replica",
        cause="engine_down", verdict=VerdictKind.WATCH,
    ),
    rule(
        "serving.front", CRITICAL,
        "all replicas answer at their own addresses, but the tier's address in front of them leaves a completion unanswered",
        "Restart the engine's router in front of the replicas. If it does not answer then, fall back.",
        source=f"{COMPLETION}, by replica", cause="engine_stalled", verdict=VerdictKind.UNKNOWN,
    ),
    rule(
        "serving.stalled", CRITICAL, "no token and no answer to a completion, but no sign of a hung collective",
        "Run triage again. If it lasts, fall back or restart the tier.", source=f"{TWICE}, {COMPLETION}",
        cause="engine_stalled", verdict=VerdictKind.UNKNOWN, threshold="completion_deadline_s",
    ),
    rule(
        "serving.stalled_long", CRITICAL,
        "no token and no answer to a completion for so long that no second source is needed", "Start the fallback.",
        source=f"{TWICE}, {COMPLETION}", cause="engine_stalled", threshold="stalled_fall_back_s",
    ),
    rule(
        "serving.unread", UNKNOWN,
        "the engine's counters could not be read, and no completion proves that it generates",
        "Check the engine's URL, and that its metrics are enabled.", source="/metrics",
    ),
    rule(
        "serving.metrics_unread", UNKNOWN,
        "the engine's counters could not be read, but a completion proves that it generates",
        "Enable the engine's metrics: without them a hang is detected late.", source="/metrics",
        verdict=VerdictKind.WATCH,
    ),
    rule(
        "serving.restarted", WATCH, "the token counter went backwards: the engine restarted within the window",
        "Read its log to find out why it ended.", source=TWICE, cause="engine_errors",
    ),
    rule(
        "serving.frozen_runs", WATCH,
        "a tier runs although it is frozen, and takes GPU memory from the tier that serves",
        "Find out who started it. /restore plan shows how to bring it back in order.",
        source="the unit's driver; the process that listens on the engine's port", cause="frozen_tier_runs",
    ),
    rule(
        "serving.unit_unread", UNKNOWN,
        "the driver of the tier's unit failed, so whether its processes run, hang or restart is not known",
        "Run the driver's command by hand (systemctl status, or the unit's own command) and read its error.",
        source="the unit's driver",
    ),
    rule("serving.stopped", INFO, "the tier is stopped on purpose", source="target"),
)  # fmt: skip


def check_serving(context: CheckContext) -> Iterator[Finding]:
    """Judge the engine of the tier that should serve."""
    snapshot, progress = context.snapshot, context.progress
    # Of the partial snapshots of monitors, only those that read processes report it.
    if snapshot.expected.unwanted and "ranks" in snapshot.collectors:
        yield RULES.finding("serving.frozen_runs", ", ".join(snapshot.expected.unwanted))
    if snapshot.expected.unit_error and "ranks" in snapshot.collectors:
        yield RULES.finding(
            "serving.unit_unread", f"the unit's driver failed: {snapshot.expected.unit_error}"
        )
    if progress.state == "not_expected":
        yield RULES.finding("serving.stopped", "the tier is stopped on purpose")
        return
    if progress.state == "down":
        yield _down(context)
        return
    if progress.state == "starting":
        yield from _starting(context)
        return
    if progress.state == "prefill":
        yield RULES.finding(
            "serving.prefill", f"no token for {progress.flat_s:.1f} s: {progress.why}", **progress.evidence()
        )
    if is_paused(snapshot):
        yield _paused(context)
    else:
        yield from _stall(context, progress)
    yield from _replicas(context, progress)
    if (front := snapshot.completion) is not None and front_is_silent(front):
        yield RULES.finding(
            "serving.front",
            f"{front.url} leaves a completion unanswered, each replica behind it answers",
            **summary_of(front),
        )
    yield from _counters(context, progress)
    if progress.state in ("flowing", "idle"):
        done = snapshot.completion
        proof = (
            f"a completion took {done.e2e_ms:.0f} ms" if done and done.outcome == "ok" and done.e2e_ms else ""
        )
        state = "generates tokens" if progress.state == "flowing" else "is idle"
        yield RULES.finding("serving.ok", proof or f"the engine {state}", **progress.evidence())


def _down(context: CheckContext) -> Finding:
    ranks, engine = context.snapshot.ranks, context.snapshot.engine
    roots = [process for process in (ranks.processes if ranks else ()) if process.root]
    alive = [process for process in roots if process.is_alive]
    evidence: dict[str, Any] = {
        "url": engine.url if engine is not None else None,
        "detail": engine.samples[-1].detail if engine is not None and engine.samples else "",
        "missing_processes": list(ranks.missing_roots) if ranks else [],
        "unit_active": ranks.unit_active if ranks else None,
        "main_processes": [{"pid": row.pid, "state": row.state_last, "age_s": row.age_s} for row in roots],
    }
    ages = [row.age_s for row in alive if row.age_s is not None]
    if alive and len(ages) == len(alive) and max(ages) < context.thresholds.starting_s:
        return RULES.finding(
            "serving.starting",
            f"started {max(ages):.0f} s ago and does not listen yet",
            **evidence,
            age_s=max(ages),
        )
    what = f"nothing listens at {engine.url}" if engine is not None else "connection refused"
    if ranks is not None and not alive and (roots or ranks.missing_roots):
        what = "its main process is gone"
    if (cause := crash_cause(context)) is not None:
        what += f" ({cause.text})"
        evidence["crash_cause"] = cause.name
    elif ended := exit_text(context.snapshot.expected.unit):
        what += f" ({ended})"
    if (dead := dead_rank(context)) is not None:
        evidence["culprits"] = [dead.evidence()]
    return RULES.finding("serving.down", f"the engine is down: {what}", **evidence)


def _paused(context: CheckContext) -> Finding:
    unit, ranks = context.snapshot.expected.unit, context.snapshot.ranks
    resume = unit.resume if unit is not None else ""
    where = sorted({row.container for row in (ranks.processes if ranks else ()) if row.container})
    finding = RULES.finding(
        "serving.paused",
        f"the tier is paused{f' ({where[0]})' if where else ''}: its processes are there and do not run",
        progress=context.progress.evidence(),
        containers=where,
        resume=resume,
    )
    return finding.model_copy(
        update={"action": f"Run `{resume}`: {finding.action}" if resume else finding.action}
    )


def _starting(context: CheckContext) -> Iterator[Finding]:
    """Judge an engine that answers 503 and says that it loads, unless it has said so for too long."""
    age_s, completion = age_of(context), context.snapshot.completion
    if age_s is None or age_s < context.thresholds.starting_s:
        said = completion.detail if completion is not None else "503"
        age = "" if age_s is None else f"started {age_s:.0f} s ago: "
        yield RULES.finding("serving.starting", f"{age}{said}", **summary_of(completion))


def _stall(context: CheckContext, progress: TierProgress) -> Iterator[Finding]:
    completion = context.snapshot.completion
    if progress.state == "unread" and completion is not None and completion.outcome == "timeout":
        late = f"no completion within {completion.deadline_s:g} s"
        yield RULES.finding("serving.stalled", late, **summary_of(completion))
    if not progress.stuck or any(True for _ in suspicions_of(context)):
        return  # a hang is a finding of the collective check
    asked = completion is not None and (completion.outcome == "timeout" or completion.status in OVERLOAD)
    unanswered = progress.state == "silent" or asked
    evidence: dict[str, Any] = {"progress": progress.evidence(), "completion": summary_of(completion)}
    is_wedged = progress.state == "flat" and not progress.running and not progress.waiting
    if is_wedged and asked and progress.sessions:
        yield RULES.finding(
            "serving.wedged",
            f"it reports no request, the router holds {progress.sessions} open on it, and a completion was not answered "
            f"within {completion.deadline_s if completion else 0:g} s",
            **evidence,
        )
    elif unanswered and progress.flat_s >= context.thresholds.stalled_fall_back_s:
        yield RULES.finding(
            "serving.stalled_long", f"no token and no answer for {progress.flat_s:.0f} s", **evidence
        )
    elif unanswered:
        what = (
            "the engine does not answer"
            if progress.state == "silent"
            else f"no token for {progress.flat_s:.1f} s"
        )
        yield RULES.finding("serving.stalled", f"{what}, nor was a completion answered", **evidence)
    else:
        yield RULES.finding(
            "serving.flat",
            f"{progress.running or 0:g} running, no token for {progress.flat_s:.1f} s",
            **evidence,
        )


def _replicas(context: CheckContext, progress: TierProgress) -> Iterator[Finding]:
    """Judge each replica of a tier of which others serve."""
    replicas = replicas_of(context.snapshot, context.thresholds)
    hung = hung_replicas(context.snapshot, context.thresholds)
    down = [one for one in replicas if one.is_down]
    if hung and not progress.stuck:
        parts = [part_of(context.snapshot, one.number) for one in hung]
        culprits = [culprit for part in parts for culprit in culprits_of(part)]
        second = [
            item.summary
            for part in parts
            for item in suspicions_of(dataclasses.replace(context, snapshot=part))
        ]
        finding = RULES.finding(
            "serving.replica_flat",
            f"replica {', '.join(one.name for one in hung)} of {len(replicas)} generates no token: {hung[0].judged.why}"
            + "".join(f"; {words}" for words in second[:2] or [one.text for one in culprits[:1]]),
            replicas=[one.name for one in hung],
            culprits=[culprit.evidence() for culprit in culprits],
            subject=f"replica {hung[0].name}",
        )
        todo = " ".join(dict.fromkeys(one.todo for one in culprits[:3] if one.todo))
        yield finding.model_copy(update={"action": f"{finding.action} {todo}".strip()})
    if down:
        yield RULES.finding(
            "serving.replica_down",
            f"replica {', '.join(one.name for one in down)} of {len(replicas)} is down: nothing listens there",
            replicas=[one.name for one in down],
            subject=f"replica {down[0].name}",
        )
    for one in replicas:
        if one.judged.condition is Condition.STARTING:
            said = one.completion.detail if one.completion is not None else "503"
            yield RULES.finding(
                "serving.starting", f"replica {one.name}: {said}", subject=f"replica {one.name}"
            )
        elif one.metrics.outcome in ("http_error", "not_metrics"):
            proved = one.completion is not None and one.completion.outcome == "ok"
            yield RULES.finding(
                "serving.metrics_unread" if proved else "serving.unread",
                f"replica {one.name}: {one.metrics.detail or one.metrics.outcome}",
                subject=f"replica {one.name}",
            )


def _counters(context: CheckContext, progress: TierProgress) -> Iterator[Finding]:
    snapshot = context.snapshot
    proved = snapshot.completion is not None and snapshot.completion.outcome == "ok"
    if problem := _counter_problem(context, progress):
        yield RULES.finding("serving.metrics_unread" if proved else "serving.unread", problem)
        return
    before, after = progress.tokens_first, progress.tokens_last
    if before is None or after is None:
        return
    if after < before:
        yield RULES.finding(
            "serving.restarted", f"the token counter fell from {before:g} to {after:g}", **progress.evidence()
        )
    elif proved and after - before <= _own_tokens(snapshot.completion) and _only_ours_moved(context):
        flat = "the token counter is flat" if after == before else "no token but those of the completion came"
        yield RULES.finding(
            "serving.flat",
            f"{progress.running:g} running and {flat}, but the synthetic completion got its tokens",
            **progress.evidence(),
        )


def _own_tokens(completion: CompletionReading | None) -> int:
    """Return how many of the counted tokens are those of our own completions."""
    if completion is None:
        return 0
    each = {one.url: one for one in (completion, *completion.replicas)}
    return sum(one.tokens for one in each.values() if one.outcome == "ok")


def _only_ours_moved(context: CheckContext) -> bool:
    """Return True if requests ran all the time, and neither the KV cache nor the processors show that a prompt is read.

    Replicas are judged one by one.
    """
    engine, progress = context.snapshot.engine, context.progress
    if engine is None or len(engine.samples) < 2 or progress.activity is Activity.WORKING:
        return False
    if engine.samples[-1].replicas:
        return False
    first, last = engine.samples[0], engine.samples[-1]
    fills = (last.kv_cache_usage or 0) > (first.kv_cache_usage or 0)
    return bool(first.running and last.running) and not fills


def _counter_problem(context: CheckContext, progress: TierProgress) -> str:
    """Return why the engine's counters cannot be judged, or an empty string."""
    engine = context.snapshot.engine
    if engine is None:
        return "" if context.snapshot.skipped("engine") else context.snapshot.why_not("engine")
    if bad := [sample for sample in engine.samples if sample.outcome not in ("ok", "timeout")]:
        return bad[-1].detail or bad[-1].outcome
    if engine.samples and (missing := {"running", "generation_tokens"} & set(engine.samples[-1].missing)):
        return f"the metrics page has no {' and no '.join(sorted(missing))}"
    if any(sample.outcome == "timeout" for sample in engine.samples) and progress.state != "silent":
        return "a scrape of /metrics timed out"
    return ""


SERVING = Check(
    title="Engine",
    rules=RULES,
    reads=READS | {"ras", "stacks", "flight_recorder", "kernel_log"},
    judge=check_serving,
)
