"""A tier's unit: its log, its state, and the command that it starts."""

import json

from gpu_actions.forensics.item import Collected, Missing, Scope, evidence

LOG_TAIL_BYTES = 512 * 1024


@evidence("{tier}/log.txt", source="log of unit {unit}", keep="tail")
async def log(scope: Scope) -> Collected:
    text = await scope.the_tier.unit.log_tail(LOG_TAIL_BYTES)
    if not text:
        raise Missing("the log is empty")
    return Collected(text=text, truncated=len(text.encode()) >= LOG_TAIL_BYTES)


@evidence("{tier}/unit.json", source="unit {unit}")
async def unit(scope: Scope) -> Collected:
    tier = scope.the_tier
    about = {
        "state": scope.known_state.model_dump(),
        "command": tier.unit.describe_start(),
        "scope": await tier.unit.scope(),
        "engine": {"kind": tier.engine.kind, "url": tier.engine.url, "model": tier.engine.model},
    }
    return Collected(text=json.dumps(about, indent=1))
