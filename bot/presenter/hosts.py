"""`/gpu hosts`: one entry a host, with what serves, the last verdict, the worker's last sign of life and the open incident."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bot.hosts import AWAY_AFTER_S
from bot.presenter.message import Lines, Message, Part, compose, footnote, header
from bot.presenter.mrkdwn import code, duration, gist, one_line
from bot.presenter.private_answers import plain
from bot.presenter.render_context import RenderContext
from bot.presenter.verdict_card import verdict_title
from bot.presenter.vocabulary import VERDICT_SIGNS, count
from bot.store.records import IncidentRecord
from gpu_actions.models import Verdict

CLOCK_LIMIT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class HostRow:
    """What the table shows of a host. `sign_age_s` is None if its worker never gave a sign of life."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    tier: str = ""
    verdict: Verdict | None = None
    verdict_age_s: float = 0.0
    sign_age_s: float | None = None
    version: str = ""
    clock_difference_s: float = 0.0
    incident: IncidentRecord | None = None
    active: tuple[str, ...] = ()

    @property
    def is_alive(self) -> bool:
        return self.sign_age_s is not None and self.sign_age_s <= AWAY_AFTER_S


def hosts_message(
    rows: Sequence[HostRow], context: RenderContext, *, brake: Sequence[str] = (), known_age_s: float = 0.0
) -> Message:
    """Return the table and a line a pool of the brake. `known_age_s` is above 0 while the fleet's database does not answer."""
    if not rows:
        return plain("No host is enrolled yet: run `gpu-oncall fleet add HOST` on the bot's machine.")
    away = [row.name for row in rows if not row.is_alive]
    title = count(len(rows), "host")
    said = (
        f"{title}, {len(away)} without a worker: {', '.join(away)}"
        if away
        else f"{title}, every worker is alive"
    )
    parts: list[Part] = [header(said), Lines(tuple(_entry(row, context) for row in rows), noun="hosts")]
    if brake:
        parts.append(
            Lines(tuple(f":vertical_traffic_light: {one_line(line)}" for line in brake), noun="pools")
        )
    if known_age_s > AWAY_AFTER_S:
        parts.append(
            footnote(f"The fleet's database does not answer: this is as of {duration(known_age_s)} ago.")
        )
    return compose(said, parts)


def _entry(row: HostRow, context: RenderContext) -> str:
    if row.verdict is None:
        verdict = f"no triage yet: {context.command('triage', row.name)}"
        sign = ":black_circle:"
    else:
        sign = VERDICT_SIGNS[row.verdict.verdict]
        verdict = f"{one_line(verdict_title(row.verdict, row.name))}, {duration(row.verdict_age_s)} ago"
    sign = sign if row.is_alive else ":grey_question:"
    labels = " ".join(code(f"{name}={value}") for name, value in sorted(row.labels.items()))
    about = [f"tier in service: {one_line(row.tier) if row.tier else 'unknown'}", verdict, _worker(row)]
    if abs(row.clock_difference_s) > CLOCK_LIMIT_S:
        about.append(f":warning: its clock differs by {row.clock_difference_s:.0f} s from the database's")
    about.append(
        f"incident {code(row.incident.id)}: {gist(row.incident.title, 10)}"
        if row.incident
        else "no open incident"
    )
    if row.active:
        about.append(f"running: {', '.join(map(code, row.active))}")
    return f"{sign} *{one_line(row.name)}* {labels}\n      " + "\n      ".join(about)


def _worker(row: HostRow) -> str:
    version = f", version {one_line(row.version)}" if row.version else ""
    if row.sign_age_s is None:
        return f"worker: never gave a sign of life{version}"
    if row.is_alive:
        return f"worker: alive {duration(row.sign_age_s)} ago{version}"
    return f"worker: no sign of life for {duration(row.sign_age_s)}{version}"
