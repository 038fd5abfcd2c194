"""The verdict card of triage: verdict and cause first, what to do second, then the findings by component, worst first.

What is healthy is one line. Only a `fall_back` verdict has the button "Start fallback".
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bot.presenter.message import Block, Lines, Message, Part, actions, button, compose, header, section
from bot.presenter.mrkdwn import clip, code, one_line
from bot.presenter.view import SEVERITY_SIGNS, VERDICT_SIGNS, VERDICT_WORDS, WORST_FIRST, View
from bot.store.records import RunRecord
from gpu_actions.models import Finding, Severity, Verdict, VerdictKind

START_FALLBACK = "start_fallback"
TRIAGE_AGAIN = "triage_again"


def verdict_of(run: RunRecord) -> Verdict | None:
    """The verdict that a run came to: the last one of its steps."""
    return next((step.verdict for step in reversed(run.steps) if step.verdict is not None), None)


def verdict_card(run: RunRecord, verdict: Verdict, view: View, *, links: Lines, footer: Block) -> Message:
    """The card of a finished triage run."""
    title = verdict_title(verdict, run.host)
    todo = what_to_do(verdict, run.host, view)
    parts: list[Part] = [header(title), section(f"{VERDICT_SIGNS[verdict.verdict]} {todo}")]
    if verdict.summary:
        parts.append(section(one_line(verdict.summary, 1000)))
    parts.append(Lines(tuple(finding_lines(verdict.findings, said=verdict.action)), noun="findings"))
    if calm := calm_line(verdict.findings):
        parts.append(Lines((calm,), noun="components", small=True))
    buttons = [button("Triage again", TRIAGE_AGAIN, run.id)]
    if verdict.verdict is VerdictKind.FALL_BACK:
        buttons.insert(0, button("Start fallback", START_FALLBACK, run.id, style="primary"))
    parts += [actions(*buttons), links, footer]
    return compose(f"{title}\n{todo}", parts)


def verdict_title(verdict: Verdict, host: str) -> str:
    """`FALL BACK: nccl_hang on demo`, `HEALTHY: demo`."""
    word = VERDICT_WORDS[verdict.verdict]
    cause = "" if verdict.cause in ("", "none") else verdict.cause
    return f"{word}: {cause} on {host}" if cause else f"{word}: {host}"


def what_to_do(verdict: Verdict, host: str, view: View) -> str:
    """The second line of the card."""
    parts = []
    if verdict.action:
        parts.append(one_line(verdict.action, 600))
    elif verdict.verdict is VerdictKind.HEALTHY:
        parts.append("Nothing to do.")
    elif verdict.verdict is VerdictKind.FALL_BACK:
        parts.append(f"Fall back: press the button, or {view.command('fallback', f'start {host}')}.")
    else:
        parts.append(f"Look at the findings, then {view.command('triage', f'{host} deep')}.")
    if verdict.verdict is VerdictKind.FALL_BACK and verdict.fallback_gpu is not None:
        gpu = verdict.fallback_gpu
        parts.append(f"Serve from GPU {gpu.index} ({code(gpu.uuid)}): {one_line(gpu.reason, 300)}.")
    return "*What to do:* " + " ".join(parts)


def finding_lines(findings: Iterable[Finding], *, said: str = "") -> list[str]:
    """Lines by component, the component with the worst finding first; healthy and informative findings are left out."""
    loud = [f for f in findings if f.severity in WORST_FIRST[:3]]
    rank = {severity: n for n, severity in enumerate(WORST_FIRST)}
    components = sorted(
        {f.component for f in loud},
        key=lambda c: (min(rank[f.severity] for f in loud if f.component == c), c),
    )
    lines = []
    for component in components:
        lines.append(f"*{one_line(component, 60)}*")
        for finding in sorted(
            (f for f in loud if f.component == component), key=lambda f: (rank[f.severity], f.id)
        ):
            lines.append(finding_line(finding, said=said))
    return lines


def finding_line(finding: Finding, *, said: str = "") -> str:
    """Sign, what it is, its evidence, what to do (unless the card has `said` that already): one line."""
    evidence = evidence_text(finding.evidence)
    line = f"{SEVERITY_SIGNS[finding.severity]} {one_line(finding.summary, 220)}"
    if evidence:
        line += f" - {one_line(evidence, 200)}"
    if finding.action and finding.action != said:
        line += f" · {one_line(finding.action, 150)}"
    return line


def calm_line(findings: Iterable[Finding]) -> str:
    """What is healthy, collapsed: `OK: gpu 12, nvlink 18`, and what is only worth knowing."""
    findings = list(findings)
    quiet = [f for f in findings if f.severity is Severity.OK]
    parts = []
    if quiet:
        names = sorted({f.component for f in quiet})
        counts = ", ".join(f"{one_line(n, 40)} {sum(f.component == n for f in quiet)}" for n in names)
        parts.append(f":large_green_circle: OK: {counts}")
    notes = [one_line(f.summary, 120) for f in findings if f.severity is Severity.INFO]
    if notes:
        shown = "; ".join(notes[:4]) + (f"; ... {len(notes) - 4} more" if len(notes) > 4 else "")
        parts.append(f":large_blue_circle: {shown}")
    return "\n".join(parts)


MAX_FACTS = 6
"""Figures of a finding on its line; all of them are in the raw snapshot."""


def evidence_text(evidence: dict[str, Any]) -> str:
    """Evidence on one line, for a phone: `running 1, flat s 3, sources token counter + stacks`; not escaped yet.

    Nested figures are named by their own key; lists of records are counted, since nobody reads JSON at 3 a.m.
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
