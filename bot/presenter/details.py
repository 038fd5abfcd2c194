"""Everything about a run that its message leaves out, for the modal behind the button Details, and a plan's modal.

A message says what is true and what to do; each step, finding, file and hash is here. Pure functions.
"""

from typing import Any

from bot.presenter.approval_request import decision_line
from bot.presenter.message import Block, Lines, Part, compose, footnote, header, modal, section
from bot.presenter.mrkdwn import clock, code, duration, link, one_line, size, user
from bot.presenter.plan_message import plan_parts
from bot.presenter.render_context import RenderContext
from bot.presenter.run_message import costs, now_line, run_title, state_sign
from bot.presenter.steps import plan_lines, step_lines
from bot.presenter.verdict_card import calm_lines, finding_lines, verdict_of, verdict_title
from bot.presenter.vocabulary import VERDICT_SIGNS, WORST_FIRST, action_name, diagnoses
from bot.store.records import RunRecord
from gpu_actions.models import Verdict


def details_view(run: RunRecord, context: RenderContext) -> dict[str, Any]:
    """Return the modal with every step, finding, file and id of a run."""
    verdict = verdict_of(run) if diagnoses(run.action) and run.status.final else None
    parts: list[Part]
    if verdict is not None:
        problems = [finding for finding in verdict.findings if finding.severity in WORST_FIRST[:3]]
        first = f"{VERDICT_SIGNS[verdict.verdict]} *{one_line(verdict_title(verdict, run.host))}*"
        said = any(verdict.summary.startswith(finding.summary) for finding in problems)
        lines = (first, "" if said else one_line(verdict.summary, 1000), one_line(verdict.action, 1000))
        parts = [
            section("\n".join(filter(None, lines))),
            *_fallback_gpu(verdict),
            Lines(tuple(finding_lines(problems, said={verdict.action})), noun="findings"),
            Lines(tuple(calm_lines(verdict.findings)), noun="components", small=True),
        ]
    else:
        full = one_line(run.outcome, 1500) or now_line(run, context)
        after = f"\n*Next:* {one_line(run.next_action, 800)}" if run.next_action else ""
        parts = [section(f"{state_sign(run)} *{one_line(run_title(run))}*\n{full}{after}")]
        if run.plan is not None:
            parts += costs(run.plan.losses, run.plan.warnings)
        parts.append(Lines(tuple(f":small_red_triangle: {one_line(p, 900)}" for p in run.problems)))
        parts.append(step_lines(run, context.now))
    parts += [Lines(tuple(decision_line(decision, run) for decision in run.decisions), noun="decisions")]
    if run.artifacts:
        parts += [header("Files"), _files(run)]
    parts.append(_ids(run, context))
    return modal(f"{action_name(run.action)} on {run.host}", compose("", parts, of_modal=True).blocks)


def plan_view(run: RunRecord, context: RenderContext) -> dict[str, Any]:
    """Return the modal with the plan that a run waits for, or that it carries out."""
    if run.plan is None:
        blocks: tuple[Block, ...] = (section(f"{code(run.id)} has no plan yet."),)
    else:
        parts = [*plan_parts(run.plan, context), plan_lines(run.plan), _ids(run, context)]
        blocks = compose("", parts, of_modal=True).blocks
    return modal(f"Plan of {run.id}", blocks)


def _fallback_gpu(verdict: Verdict) -> list[Part]:
    gpu = verdict.fallback_gpu
    return (
        []
        if gpu is None
        else [section(f"*Fall back to* GPU {gpu.index} ({code(gpu.uuid)}): {one_line(gpu.reason, 500)}")]
    )


def _files(run: RunRecord) -> Lines:
    lines = (
        f":paperclip: {link(a.url, a.artifact.title or a.artifact.name)} {size(a.artifact.size_bytes)}"
        for a in run.artifacts
    )
    return Lines(tuple(lines), noun="files")


def _ids(run: RunRecord, context: RenderContext) -> Block:
    """Return who asked, when, how long it took, and the ids."""
    parts = [f"requested by {user(run.requester)} at {clock(run.created_at, with_date=True)}"]
    if run.started_at is not None and run.ended_at is not None:
        parts.append(f"took {duration(run.ended_at - run.started_at)}")
    elif run.started_at is not None:
        parts.append(f"running for {duration(context.now - run.started_at)}")
    if run.plan_hash:
        parts.append(f"plan {code(run.plan_hash)}")
    return footnote(" · ".join((*parts, code(run.id))))
