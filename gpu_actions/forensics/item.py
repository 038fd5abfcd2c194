"""Items of evidence: what each declares, and what it is collected from.

A new item is a function in a file of `gpu_actions/forensics/items/`, a line in `registry.py` and a line in docs/evidence.md:

    @evidence("host/clock.txt", source="timedatectl")
    async def clock(scope: Scope) -> Collected:
        return Collected(text=...)

A function returns what it read, or raises `Missing` with the reason that goes into the manifest. Any other error costs only its
own item too. Items read and never disturb what they read.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from gpu_actions.host import Host, Tier
from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import UnitState

ITEM_CAP_BYTES = 2 * 1024 * 1024
STATE_SHARE = 0.2
"""Share of the budget after which a unit that does not report its state counts as silent."""


class Missing(Exception):
    """There is nothing to collect. The message is the reason that goes into the manifest."""


class Collected(Frozen):
    """What a collector read. `exit_code` is set where a program wrote it; `truncated`: the source has more."""

    text: str
    exit_code: int | None = None
    truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class Item:
    """One file of a bundle. `keep` is the end that stays when it is over the cap: the tail of a log, the head of the rest."""

    path: str
    source: str
    collect: Callable[[], Awaitable[Collected]]
    keep: Literal["head", "tail"] = "head"
    cap_bytes: int | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What an item is collected from: a host, or one tier of it with the state of its unit.

    `state` is None where the unit did not report it; `problem` then says why.
    """

    host: Host
    budget_s: float
    gap_s: float
    tier: Tier | None = None
    state: UnitState | None = None
    problem: str = ""
    pid: int | None = None
    number: int = 1
    shared: "dict[str, asyncio.Task[Any]]" = field(default_factory=dict)

    @property
    def the_tier(self) -> Tier:
        """Return the tier of an item that belongs to one."""
        assert self.tier is not None  # noqa: S101  (items with {tier} in their path always have one)
        return self.tier

    @property
    def known_state(self) -> UnitState:
        """Return the state of the tier's unit. Raises Missing if it is not known."""
        if self.state is None:
            raise Missing(self.problem)
        return self.state

    def once(self, name: str, work: Callable[[], Any]) -> "asyncio.Task[Any]":
        """Start `work` at the first call and return its task, so that several items share one reading."""
        if name not in self.shared:
            self.shared[name] = asyncio.create_task(work())
        return self.shared[name]


async def scope_of_tier(scope: Scope, tier: Tier) -> Scope | None:
    """Return the scope of a tier, or None when it never ran. A unit that fails or stays silent is noted, not raised."""
    limit_s = scope.budget_s * STATE_SHARE
    try:
        async with asyncio.timeout(limit_s):
            state = await tier.unit.state()
            if not state.active and not await tier.unit.log_tail(1):
                return None
    except TimeoutError:
        problem = f"unit {tier.unit.name} did not report its state within {limit_s:.1f} s"
    except Exception as error:  # noqa: BLE001  (one failing unit must not cost the evidence of the others)
        problem = f"unit {tier.unit.name}: {type(error).__name__}: {error}"
    else:
        return replace(scope, tier=tier, state=state)
    return replace(scope, tier=tier, problem=problem)


When = Callable[[Scope], Sequence[Scope]]
"""When an item applies, and to what: no scope, one, or one for each process or reading."""


def always(scope: Scope) -> Sequence[Scope]:
    """Apply once."""
    return (scope,)


def while_active(scope: Scope) -> Sequence[Scope]:
    """Apply to a tier whose unit is active, or may be."""
    return (scope,) if scope.state is None or scope.state.active else ()


def twice(when: When) -> When:
    """Apply twice, `gap_s` apart, where `when` applies, to read counters that should move at two moments."""
    return lambda scope: [replace(one, number=number) for one in when(scope) for number in (1, 2)]


Collector = Callable[[Scope], Awaitable[Collected]]
"""Collects one item from its scope."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A declared kind of item. `path` and `source` may use {tier}, {unit}, {url}, {pid} and {number}.

    `cap_bytes` and `deadline_s` limit one item; without them the bundle's own cap and the whole budget apply.
    """

    path: str
    source: str
    collect: Collector
    when: When = always
    keep: Literal["head", "tail"] = "head"
    cap_bytes: int | None = None
    deadline_s: float | None = None

    def items(self, scope: Scope) -> list[Item]:
        """Return the items of this kind that apply to a scope. A failure to decide that becomes a missing item."""
        try:
            return [self._item(one, partial(self._collect, one)) for one in self.when(scope)]
        except Exception as error:  # noqa: BLE001  (one failing kind costs its own items only)
            return [self._item(scope, partial(_missing, f"failed: {type(error).__name__}: {error}"))]

    def _item(self, scope: Scope, collect: Callable[[], Awaitable[Collected]]) -> Item:
        tier = scope.tier
        words = {"pid": "unknown" if scope.pid is None else scope.pid, "number": scope.number}
        if tier is not None:
            words |= {"tier": tier.name, "unit": tier.unit.name, "url": tier.engine.url}
        later = f", {scope.gap_s:g} s later" if scope.number > 1 else ""
        return Item(
            path=self.path.format(**words),
            source=self.source.format(**words) + later,
            collect=collect,
            keep=self.keep,
            cap_bytes=self.cap_bytes,
            deadline_s=self.deadline_s,
        )

    async def _collect(self, scope: Scope) -> Collected:
        await asyncio.sleep(scope.gap_s * (scope.number - 1))
        return await self.collect(scope)


async def _missing(reason: str) -> Collected:
    raise Missing(reason)


def evidence(path: str, **declared: Any) -> Callable[[Collector], Evidence]:
    """Declare the decorated function as a kind of evidence. The other fields are those of `Evidence`."""
    return lambda collect: Evidence(path=path, collect=collect, **declared)


async def read_to_cap(stream: asyncio.StreamReader, cap_bytes: int = ITEM_CAP_BYTES) -> tuple[str, bool]:
    """Read a stream to its end or to the cap. Return the text and whether the stream has more.

    One `read(n)` returns what has arrived so far, not n bytes, so it is called until the end.
    """
    kept = bytearray()
    while len(kept) <= cap_bytes and (chunk := await stream.read(65536)):
        kept += chunk
    return kept[:cap_bytes].decode(errors="replace"), len(kept) > cap_bytes
