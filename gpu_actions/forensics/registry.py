"""Every kind of evidence, one line per file of `gpu_actions/forensics/items/`."""

import asyncio
from functools import cache
from importlib import import_module

from gpu_actions.forensics.item import Evidence, Item, Scope, scope_of_tier

EVIDENCE_FILES = (
    "triage",
    "kernel_log",
    "versions",
    "router",
    "nccl_ras",
    "gpu_programs",
    "unit",
    "metrics",
    "processes",
    "stacks",
    "flight_recorder",
    "results",
)


@cache
def all_evidence() -> tuple[Evidence, ...]:
    """Return every declared kind of evidence."""
    modules = [import_module(f"gpu_actions.forensics.items.{name}") for name in EVIDENCE_FILES]
    return tuple(
        found for module in modules for found in vars(module).values() if isinstance(found, Evidence)
    )


async def items_of(scope: Scope) -> list[Item]:
    """Return the items that apply to a host and its tiers now."""
    host = scope.host
    tiers = await asyncio.gather(*(scope_of_tier(scope, tier) for tier in (host.tp, host.fallback)))
    return [
        item
        for kind in all_evidence()
        for one in (tiers if kind.path.startswith("{tier}/") else [scope])
        if one is not None
        for item in kind.items(one)
    ]
