"""The whole schedule of a load test, made from a seed before the start: when each request is due and how long it is.

Due times are seconds from the start of the measured part, so those of the warm-up are negative. They never change: a request
that goes out late stays due when it was due.
"""

import csv
import hashlib
import json
import math
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_actions.loadtest.spec import MAX_REQUESTS, LoadSpec


class BadTrace(ValueError):
    """A recorded trace cannot be replayed. The message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Columns of equal length, ordered by due time: seconds, prompt tokens, new tokens. `warmup` rows come first."""

    due_s: "array[float]"
    prompt_len: "array[int]"
    new_tokens: "array[int]"
    warmup: int
    trace_sha256: str | None = None

    def __len__(self) -> int:
        return len(self.due_s)


def make_schedule(spec: LoadSpec) -> Schedule:
    """Return the schedule of a spec. The same spec has the same schedule on every machine.

    Raises BadTrace when a replay's file cannot be read or has too many rows.
    """
    if spec.trace_file is not None:
        return _replay(spec, spec.trace_file)
    generator = random.Random(spec.seed)  # random() is stable between Python versions
    due = array("d")
    if spec.warmup_s:
        # The warm-up is a constant or Poisson flow at the rate with which the measured part starts.
        rate = max(spec.ramp_from_qps, spec.target_qps / 10) if spec.arrival == "ramp" else spec.target_qps
        count = _whole(rate * spec.warmup_s)
        is_poisson = spec.arrival == "poisson"
        flow = _poisson(generator, count, spec.warmup_s) if is_poisson else _constant(rate, count)
        due.extend(at - spec.warmup_s for at in flow)
    warmup = len(due)
    due.extend(_arrivals(spec, generator))
    if spec.prompt_lengths:
        lengths = _equally_often(spec.prompt_lengths, len(due), generator)
    else:
        span = spec.prompt_len_max - spec.prompt_len_min + 1
        lengths = array("i", (spec.prompt_len_min + int(generator.random() * span) for _ in range(len(due))))
    return Schedule(due_s=due, prompt_len=lengths, new_tokens=_new_tokens(spec, len(due)), warmup=warmup)


def _new_tokens(spec: LoadSpec, count: int) -> "array[int]":
    """Return the number of new tokens of each request: of the list, or uniform over the range."""
    if spec.min_new_tokens is None:
        return array("i", [spec.max_new_tokens]) * count
    # A generator of its own: the due times and the prompts do not depend on the range.
    generator = random.Random(f"{spec.seed} new tokens")
    if spec.answer_lengths:
        return _equally_often(spec.answer_lengths, count, generator)
    span = spec.max_new_tokens - spec.min_new_tokens + 1
    return array("i", (spec.min_new_tokens + int(generator.random() * span) for _ in range(count)))


def _equally_often(lengths: Sequence[int], count: int, generator: random.Random) -> "array[int]":
    """Return each length equally often, give or take one, in a random order: two runs of one workload ask for the same work."""
    drawn = [lengths[number % len(lengths)] for number in range(count)]
    generator.shuffle(drawn)
    return array("i", drawn)


def _whole(expected: float) -> int:
    """Round an expected number of requests to the number that is sent."""
    return math.floor(expected + 0.5)


def _arrivals(spec: LoadSpec, generator: random.Random) -> Iterator[float]:
    """Return the due times of the measured part. Their number is the mean rate times the duration, never a draw."""
    rate, seconds = spec.target_qps, spec.duration_s
    count = max(1, _whole(rate * seconds))
    match spec.arrival:
        case "constant":
            return _constant(rate, count)
        case "burst":
            return _bursts(rate, count, spec.burst_size)
        case "ramp":
            return _ramp(spec.ramp_from_qps, rate, seconds)
        case _:
            return _poisson(generator, count, seconds)


def _constant(rate: float, count: int) -> Iterator[float]:
    return (number / rate for number in range(count))


def _poisson(generator: random.Random, count: int, seconds: float) -> Iterator[float]:
    """Yield the arrivals of a Poisson process, given that there are `count` of them in `seconds`.

    These are the order statistics of `count` independent uniform times (Ross, Stochastic Processes, theorem 2.3.1), drawn in
    order: the smallest of k uniform times leaves a share of the interval that is distributed as U^(1/k).
    """
    left = 1.0
    for remaining in range(count, 0, -1):
        left *= (1.0 - generator.random()) ** (1.0 / remaining)
        yield min(seconds * (1.0 - left), math.nextafter(seconds, 0))


def _bursts(rate: float, count: int, size: int) -> Iterator[float]:
    """Yield `size` requests together every `size / rate` seconds, so that the mean rate is the target.

    The last burst is smaller where the count is not a multiple of the size.
    """
    return (number // size * size / rate for number in range(count))


def _ramp(start: float, end: float, seconds: float) -> Iterator[float]:
    """Yield the times at which the integral of a linearly changing rate passes 0.5, 1.5, 2.5 and so on."""
    slope = (end - start) / seconds
    for number in range(max(1, _whole((start + end) / 2 * seconds))):
        passed = number + 0.5
        if abs(slope) < 1e-12:
            yield passed / end
        else:
            root = max(0.0, start * start + 2 * slope * passed)
            yield min((root**0.5 - start) / slope, math.nextafter(seconds, 0))


def _replay(spec: LoadSpec, path: Path) -> Schedule:
    """Read a recorded trace. Arrivals are shifted so that the first is due at 0; there is no warm-up part.

    A row has `at_s` (seconds) or `timestamp` (milliseconds), and may have `prompt_len` and `max_new_tokens`. The public
    Mooncake traces call these `input_length` and `output_length`.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadTrace(
            f"trace_file = {path}: cannot be read: {error.strerror}; use a readable file"
        ) from error
    generator = random.Random(spec.seed)
    rows: list[tuple[float, int, int]] = []
    for line, record in _records(path, raw):
        try:
            at = float(record["at_s"]) if "at_s" in record else float(record["timestamp"]) / 1000  # type: ignore[arg-type]
            drawn = generator.randint(spec.prompt_len_min, spec.prompt_len_max)
            prompt = int(record.get("prompt_len") or record.get("input_length") or drawn)  # type: ignore[call-overload]
            tokens = int(record.get("max_new_tokens") or record.get("output_length") or spec.max_new_tokens)  # type: ignore[call-overload]
            if not 0 <= at < 1e12 or prompt < 1 or tokens < 1:
                raise ValueError("a negative or zero figure")
        except (KeyError, TypeError, ValueError) as error:
            raise BadTrace(
                f"trace_file = {path}: line {line} is not an arrival ({error}); "
                f"a row needs at_s (seconds) or timestamp (milliseconds), each 0 or more"
            ) from error
        rows.append((at, prompt, tokens))
        if len(rows) > MAX_REQUESTS:
            raise BadTrace(f"trace_file = {path}: has more than {MAX_REQUESTS:,} rows; shorten it")
    rows.sort(key=lambda row: row[0])
    first = rows[0][0] if rows else 0.0
    kept = [row for row in rows if row[0] - first < spec.duration_s]
    if not kept:
        raise BadTrace(f"trace_file = {path}: has no arrival; use a trace with at least one row")
    return Schedule(
        due_s=array("d", (at - first for at, _, _ in kept)),
        prompt_len=array("i", (prompt for _, prompt, _ in kept)),
        new_tokens=array("i", (tokens for _, _, tokens in kept)),
        warmup=0,
        trace_sha256=hashlib.sha256(raw).hexdigest(),
    )


def _records(path: Path, raw: bytes) -> Iterator[tuple[int, dict[str, object]]]:
    lines = raw.decode(errors="replace").splitlines()
    if path.suffix == ".csv":
        for line, row in enumerate(csv.DictReader(lines), start=2):
            yield line, dict(row)
        return
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise BadTrace(
                f"trace_file = {path}: line {line} is not JSON: {error}; write one object a line"
            ) from error
        if not isinstance(record, dict):
            raise BadTrace(f"trace_file = {path}: line {line} is not an object; write one object a line")
        yield line, record
