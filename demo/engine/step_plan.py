"""What one engine step computes, as data, and its form on the wire: rank 0 decides, broadcasts it, all ranks do it.

The wire form is one int64 array of a fixed size, so that a step costs one broadcast and no rank must ask for a length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Operation(IntEnum):
    """What the ranks are told to do."""

    STEP = 1
    START_PROFILE = 2
    STOP_PROFILE = 3
    STOP = 4


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One running request: its last token, to be put at `position` of its cache slot."""

    slot: int
    position: int
    token: int


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """A piece of a prompt, to be put at `start` of its cache slot. The last piece gives logits."""

    slot: int
    start: int
    tokens: tuple[int, ...]
    last: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: `value` carries the number of iterations of START_PROFILE, `stamp` the time in its file names (ms)."""

    operation: Operation = Operation.STEP
    decode: tuple[DecodeRow, ...] = ()
    prefill: tuple[PrefillChunk, ...] = ()
    value: int = 0
    stamp: int = 0


HEADER = 5
PER_ROW = 3
PER_CHUNK = 4


def wire_size(max_num_seqs: int, prefill_chunk: int) -> int:
    """The largest plan in int64 words: each sequence decodes or prefills, and prompts share one step's token budget."""
    return HEADER + max_num_seqs * PER_CHUNK + prefill_chunk


def encode_plan(plan: StepPlan) -> list[int]:
    """Give the plan as words."""
    words = [int(plan.operation), len(plan.decode), len(plan.prefill), plan.value, plan.stamp]
    for row in plan.decode:
        words += (row.slot, row.position, row.token)
    for chunk in plan.prefill:
        words += (chunk.slot, chunk.start, int(chunk.last), len(chunk.tokens), *chunk.tokens)
    return words


def decode_plan(words: Sequence[int]) -> StepPlan:
    """Read a plan from words; what follows it is ignored. Raises ValueError for an operation that does not exist."""
    operation, rows, chunks, value, stamp = words[:HEADER]
    at = HEADER
    decode = []
    for _ in range(rows):
        decode.append(DecodeRow(*words[at : at + PER_ROW]))
        at += PER_ROW
    prefill = []
    for _ in range(chunks):
        slot, start, last, count = words[at : at + PER_CHUNK]
        at += PER_CHUNK
        prefill.append(PrefillChunk(slot, start, tuple(words[at : at + count]), bool(last)))
        at += count
    return StepPlan(Operation(operation), tuple(decode), tuple(prefill), value, stamp)
