"""Write an incident's report as Markdown, and as one HTML page with the pictures in it.

All text from people, hosts and logs is escaped, and secrets are removed, before it is written.
"""

import base64
import datetime
import re
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import jinja2

from bot.incidents.report.model import IncidentFacts
from bot.store.records import ArtifactRecord, Person, RunRecord, StepRecord
from gpu_actions.system.redact import redact

TEMPLATES = Path(__file__).parent
MAX_CELL = 400
MAX_PICTURE_BYTES = 1024 * 1024
_MARKDOWN = re.compile(r"([\\`*{}\[\]<>#|~]|(?<!\w)_|_(?!\w))")
DECIDED = {"approve": "approved", "deny": "denied", "override": "overrode the approval"}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem; color: #1d1c1d; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: .5rem 0; }
th, td { border: 1px solid #ccc; padding: .25rem .5rem; text-align: left; vertical-align: top; }
th, pre { background: #f4f4f4; } pre { padding: .5rem; overflow-x: auto; } code { overflow-wrap: anywhere; }
img { max-width: 100%; } h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #1a1d21; } th, pre { background: #2a2d31; } td, th { border-color: #555; }
}
"""


def markdown(
    facts: IncidentFacts,
    *,
    links: Mapping[int, str] | None = None,
    names: Mapping[str, str] | None = None,
    zone: datetime.tzinfo | None = None,
) -> str:
    """Return the report as Markdown.

    `links` maps an artifact's id to its link, `names` maps user ids to names, `zone` is for local times (default: the
    machine's).
    """
    known: dict[str, str] = {run.requester.id: run.requester.name for run in facts.runs if run.requester.name}
    known |= {d.user.id: d.user.name for run in facts.runs for d in run.decisions if d.user.name}
    known |= dict(names or {})
    environment = jinja2.Environment(  # noqa: S701  (Markdown; every value goes through an escaping filter)
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    filters: dict[str, Callable[[Any], str]] = {
        "text": text,
        "cell": _cell,
        "block": _block,
        "decided": lambda decision: DECIDED.get(str(decision), str(decision)),
        "utc": lambda at: _time(at, datetime.UTC),
        "local": lambda at: _time(at, zone),
        "when": lambda at: datetime.datetime.fromtimestamp(at, datetime.UTC).strftime(
            "%Y-%m-%d %H:%M:%S UTC"
        ),
        "seconds": lambda value: f"{value:.1f} s",
        "person": lambda person: _person(person, known),
        "name": lambda user_id: known.get(user_id, "") or user_id,
        "took": _took,
        "step_took": _step_took,
        "zone": lambda at: _zone(at, zone),
        "linked": lambda record: _linked(record, links or {}),
    }
    environment.filters.update(filters)
    return environment.get_template("report.md.j2").render(f=facts)


def html(report: str, *, title: str, pictures: Mapping[str, bytes] | None = None) -> str:
    """Return a Markdown report as a page that loads nothing. `pictures` maps titles to PNG files."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(report)
    body = body.replace("<li>[ ] ", '<li><input type="checkbox"> ')
    figures = "".join(
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, data in (pictures or {}).items()
        if len(data) <= MAX_PICTURE_BYTES
    )
    pictured = f"<h2>Pictures</h2>{figures}" if figures else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}{pictured}</body></html>"
    )


def text(value: object) -> str:
    """Return text on one line, without secrets, that Markdown shows literally."""
    line = " ".join(redact(str(value)).text.split())
    return _MARKDOWN.sub(r"\\\1", line)


def _cell(value: object) -> str:
    return text(value)[:MAX_CELL]


def _block(value: str) -> str:
    """Return the lines of a code block, without the fences that they bring."""
    lines = redact(value).text.strip("\n").splitlines()
    return "\n".join(line.replace("```", "'''") for line in lines if line.strip() != "```")


def _time(at: float, zone: datetime.tzinfo | None) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).astimezone(zone).strftime("%m-%d %H:%M:%S")


def _person(person: Person, names: Mapping[str, str]) -> str:
    return names.get(person.id, "") or person.name or person.id


def _took(run: RunRecord) -> str:
    if run.started_at is None or run.ended_at is None:
        return ""
    return f"{run.ended_at - run.started_at:.0f} s"


def _step_took(step: StepRecord) -> str:
    if step.started_at is None or step.ended_at is None:
        return str(step.status)
    return f"{step.ended_at - step.started_at:.1f} s"


def _zone(at: float, zone: datetime.tzinfo | None) -> str:
    local = datetime.datetime.fromtimestamp(at, datetime.UTC).astimezone(zone)
    return f"local ({local.strftime('%Z')})"


def _linked(record: ArtifactRecord, links: Mapping[int, str]) -> str:
    name = text(record.artifact.title or record.artifact.name)
    link: Any = links.get(record.id)
    return f"[{name}]({link})" if link else name
