"""The brake of a fleet: how many hosts of a pool may change at once, and when nothing changes by itself any more.

Pure functions over what is known of the hosts. A change of a host counts as the loss of its capacity until it has ended,
since it may go wrong; a host that serves nothing has no capacity to lose.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pydantic import Field

from bot.settings.model import PoolRule
from gpu_actions.models import Frozen

SICK_WITHIN_S = 300.0
SICK_SHARE = 0.5
LEAST_SICK = 2
"""One sick host is no common cause, even if it is all of its pool."""


class HostNow(Frozen):
    """What the brake knows of a host. `cause` is that of a verdict FALL BACK, `sick_s` its age (None: not judged sick)."""

    name: str
    labels: dict[str, str] = Field(default_factory=dict)
    is_serving: bool = True
    changed_by: str = ""
    sick_s: float | None = None
    cause: str = ""

    @property
    def pool(self) -> str:
        return self.labels.get("pool", "")

    @property
    def is_sick(self) -> bool:
        return self.sick_s is not None and self.sick_s <= SICK_WITHIN_S


def refusal(host: str, hosts: Sequence[HostNow], rules: Mapping[str, PoolRule], *, is_automatic: bool) -> str:
    """Return why a change of this host may not start now, or an empty string. `rules` are by pool."""
    this = next(one for one in hosts if one.name == host)
    pool = [one for one in hosts if one.pool == this.pool]
    others = [one for one in pool if one.name != host]
    rule = rules.get(this.pool, PoolRule())
    named = f"the {_pool_named(this.pool)}"
    if is_automatic and (common := common_cause(pool)):
        return f"nothing changes by itself in {named}: {common}"
    changing = [one for one in others if one.changed_by]
    if len(changing) >= rule.max_changing:
        who = ", ".join(f"{one.name} ({one.changed_by})" for one in changing)
        return (
            f"{who} {'is' if len(changing) == 1 else 'are'} being changed, and at most {rule.max_changing} of {named} may "
            f"change at once (fleet.pools). Wait for the end, or stop it"
        )
    left = [one.name for one in others if one.is_serving and not one.changed_by]
    if this.is_serving and len(left) < rule.least_serving:
        return (
            f"without {host}, {len(left)} of {named} would serve ({', '.join(left) or 'none'}), and at least "
            f"{rule.least_serving} must (fleet.pools)"
        )
    return ""


def states(hosts: Sequence[HostNow], rules: Mapping[str, PoolRule]) -> list[str]:
    """Return one line a pool: what changes there, what may still change, and why nothing changes by itself."""
    lines = []
    for name in sorted({one.pool for one in hosts}):
        pool, rule = [one for one in hosts if one.pool == name], rules.get(name, PoolRule())
        changing = [f"{one.name} ({one.changed_by})" for one in pool if one.changed_by]
        serving = sum(one.is_serving for one in pool)
        line = (
            f"{_pool_named(name)}: {serving} of {len(pool)} serve (at least "
            f"{rule.least_serving}), {len(changing)} of at most {rule.max_changing} {'is' if len(changing) == 1 else 'are'} "
            f"being changed{': ' + ', '.join(changing) if changing else ''}"
        )
        stopped = [one.name for one in pool if refusal(one.name, hosts, rules, is_automatic=False)]
        if stopped:
            line += f"; a change of {', '.join(stopped)} would be refused"
        if common := common_cause(pool):
            line += f". Nothing changes by itself: {common}"
        lines.append(line)
    return lines


def _pool_named(pool: str) -> str:
    return f"pool {pool}" if pool else "hosts without a pool"


def common_cause(pool: Sequence[HostNow]) -> str:
    """Return a sentence if more than half of a pool was judged sick within five minutes, or an empty string."""
    sick = [one for one in pool if one.is_sick]
    if len(sick) < LEAST_SICK or len(sick) <= SICK_SHARE * len(pool):
        return ""
    groups = _groups(sick, pool)
    shared = f" They share {groups}." if groups else " No label is theirs alone."
    return (
        f"{len(sick)} of {len(pool)} hosts were judged sick within {SICK_WITHIN_S / 60:.0f} minutes "
        f"({', '.join(one.name for one in sick)}). Look for a common cause: fabric, driver, deploy, power.{shared}"
    )


def _groups(sick: Sequence[HostNow], pool: Sequence[HostNow]) -> str:
    """Return what two or more sick hosts have in common, the most telling first: all of them have it, and no healthy one."""
    healthy = Counter(label for one in pool if not one.is_sick for label in _labels(one))
    found = Counter(label for one in sick for label in _labels(one))
    shared = [label for label, count in found.items() if count >= LEAST_SICK]
    shared.sort(key=lambda label: (healthy[label] - found[label], label))
    return ", ".join(
        f"{label} ({found[label]} sick, {healthy[label]} not)"
        for label in shared
        if healthy[label] < found[label]
    )


def _labels(host: HostNow) -> Iterable[str]:
    yield from (f"{name}={value}" for name, value in host.labels.items() if name != "pool")
    if host.cause:
        yield f"cause={host.cause}"
