"""The verdict card of triage: verdict and cause first, then the worst finding, then what to do and the button for it.

At most 60 words, and no sentence twice; everything else is behind the button Details. Only a `fall_back` verdict has the
button Start fallback.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bot.presenter.message import Message, Part, actions, button, compose, footnote, header, section
from bot.presenter.mrkdwn import ago, capitalized, clip, code, gist, one_line, user
from bot.presenter.render_context import RenderContext
from bot.presenter.vocabulary import (
    SEVERITY_SIGNS,
    VERDICT_SIGNS,
    VERDICT_WORDS,
    WORST_FIRST,
    count,
)
from bot.store.records import RunRecord
from gpu_actions.models import Finding, Severity, Verdict, VerdictKind

START_FALLBACK = "start_fallback"
TRIAGE_AGAIN = "triage_again"
DETAILS = "details"
SUMMARY_WORDS = 15
ACTION_WORDS = 12
MAX_FACTS = 6
"""Figures on a finding's line; the raw snapshot has all of them."""
NOTHING = "No action needed."


def verdict_of(run: RunRecord) -> Verdict | None:
    """Return the verdict that a run reached: the last one of its steps."""
    return next((step.verdict for step in reversed(run.steps) if step.verdict is not None), None)


def verdict_title(verdict: Verdict, host: str) -> str:
    """Return `FALL BACK: nccl_hang on demo` or `HEALTHY: demo`."""
    cause = "" if verdict.cause in ("", "none") else f"{verdict.cause} on "
    return f"{VERDICT_WORDS[verdict.verdict]}: {cause}{host}"


def verdict_card(run: RunRecord, verdict: Verdict, context: RenderContext) -> Message:
    """Return the card of a finished triage run."""
    title = verdict_title(verdict, run.host)
    true = capitalized(gist(verdict.summary, SUMMARY_WORDS))
    todo = _what_to_do(verdict, run.host, context)
    said = (
        f"{true.rstrip('.')}. {todo}" if todo == NOTHING and true else "\n".join(filter(None, (true, todo)))
    )
    buttons = [button("Details", DETAILS, run.id), button("Triage again", TRIAGE_AGAIN, run.id)]
    if verdict.verdict is VerdictKind.FALL_BACK:
        question = f"The fallback serves {run.host} from now on. The full tier is stopped once its evidence is saved."
        fall_back = button("Start fallback", START_FALLBACK, run.id, style="primary", confirm=question)
        buttons.insert(0, fall_back)
    parts: list[Part] = [
        header(title),
        section(f"{VERDICT_SIGNS[verdict.verdict]} {said}"),
        actions(*buttons),
    ]
    parts.append(
        footnote(" · ".join((*_counts(verdict.findings), user(run.requester), ago(_at(run)), code(run.id))))
    )
    return compose(f"{title}\n{todo}", parts)


def _at(run: RunRecord) -> float:
    return run.ended_at or run.created_at


def _counts(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield how many findings there are beside the one that the card names, and how many checks are healthy."""
    problems = [finding for finding in findings if finding.severity in WORST_FIRST[:3]]
    if len(problems) > 1:
        worst = min((problem.severity for problem in problems[1:]), key=WORST_FIRST.index)
        yield f"{SEVERITY_SIGNS[worst]} {count(len(problems) - 1, 'more finding')}"
    if healthy := sum(finding.severity is Severity.OK for finding in findings):
        yield f"{SEVERITY_SIGNS[Severity.OK]} {healthy} OK"


def _what_to_do(verdict: Verdict, host: str, context: RenderContext) -> str:
    if verdict.verdict is VerdictKind.HEALTHY or verdict.action.lower().startswith(
        ("nothing to do", "no action")
    ):
        return NOTHING
    if verdict.action and not verdict.summary.startswith(verdict.action.rstrip(".")):
        todo = gist(verdict.action, ACTION_WORDS).rstrip(".")
    elif verdict.verdict is VerdictKind.FALL_BACK:
        todo = "start the fallback"
    else:
        todo = f"read Details, then {context.command('triage', f'{host} deep')}"
    if verdict.verdict is VerdictKind.FALL_BACK and (gpu := verdict.fallback_gpu) is not None:
        todo += f". Serve from GPU {gpu.index}"
    return f"*Next:* {todo}."


def finding_lines(problems: Iterable[Finding], *, said: set[str]) -> list[str]:
    """Return lines by component, the component with the worst finding first; an action in `said` is not repeated."""
    by_component: dict[str, list[Finding]] = {}
    for finding in sorted(problems, key=lambda f: (WORST_FIRST.index(f.severity), f.component, f.id)):
        by_component.setdefault(finding.component, []).append(finding)
    lines = []
    for component, findings in by_component.items():
        lines.append(f"*{one_line(component, 60)}*")
        for finding in findings:
            parts = [f"{SEVERITY_SIGNS[finding.severity]} {one_line(finding.summary, 220)}"]
            if evidence := _evidence_text(finding.evidence):
                parts.append(f" - {one_line(evidence, 200)}")
            if finding.action and finding.action not in said:
                parts.append(f" · {one_line(finding.action, 150)}")
                said.add(finding.action)
            lines.append("".join(parts))
    return lines


def calm_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield what is healthy as one line, `OK: gpu 12, nvlink 18`, and what is only worth knowing as another."""
    healthy: dict[str, int] = {}
    infos = []
    for finding in findings:
        if finding.severity is Severity.OK:
            healthy[finding.component] = healthy.get(finding.component, 0) + 1
        elif finding.severity is Severity.INFO:
            infos.append(one_line(finding.summary, 120))
    if healthy:
        counts = ", ".join(f"{one_line(name, 40)} {number}" for name, number in sorted(healthy.items()))
        yield f":large_green_circle: OK: {counts}"
    if infos:
        more = f"; ... {len(infos) - 4} more" if len(infos) > 4 else ""
        yield f":large_blue_circle: {'; '.join(infos[:4])}{more}"


def _evidence_text(evidence: dict[str, Any]) -> str:
    """Return evidence on one line: `running 1, flat s 3, sources token counter + stacks`. The text is not escaped yet.

    Nested figures appear under their own key; lists of records are counted, because nobody reads JSON at 3 a.m.
    """
    facts = list(_facts(evidence))
    more = f", {len(facts) - MAX_FACTS} more" if len(facts) > MAX_FACTS else ""
    return ", ".join(facts[:MAX_FACTS]) + more


def _facts(evidence: Mapping[str, Any]) -> Iterator[str]:
    for key, value in evidence.items():
        name = str(key).replace("_", " ")
        match value:
            case None | "" | [] | {}:
                continue
            case bool():
                yield f"{name} {'yes' if value else 'no'}"
            case float():
                yield f"{name} {value:.4g}"
            case dict():
                yield from _facts(value)
            case list() if any(isinstance(item, dict | list) for item in value):
                yield f"{name} {len(value)}"
            case list():
                shown = " + ".join(str(item).replace("_", " ") for item in value[:4])
                yield clip(f"{name} {shown}{' ...' if len(value) > 4 else ''}", 100)
            case _:
                yield clip(f"{name} {value}", 100)
