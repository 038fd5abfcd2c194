"""A tier's unit: its log without prompts, its state, and the command that it starts."""

import json

from gpu_actions.forensics.item import Collected, Missing, Scope, evidence
from gpu_actions.serving.engine_log import read_engine_log

LOG_TAIL_BYTES = 512 * 1024


@evidence("{tier}/log.txt", source="log of unit {unit}", keep="tail")
async def log(scope: Scope) -> Collected:
    text, truncated = await read_engine_log(scope.the_tier.unit, LOG_TAIL_BYTES)
    if not text:
        raise Missing("the log is empty")
    return Collected(text=text, truncated=truncated)


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
