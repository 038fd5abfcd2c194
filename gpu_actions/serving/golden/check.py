"""The whole check of golden prompts: load the record, ask the engine, judge."""

from pathlib import Path

from gpu_actions.serving.golden.judgement import GoldenJudgement, judge_golden, unknown_golden
from gpu_actions.serving.golden.reading import read_golden
from gpu_actions.serving.golden.record import GoldenUnreadable, load_golden
from gpu_actions.serving.interfaces import Engine


async def check_golden(engine: Engine, path: Path | None, *, budget_s: float) -> GoldenJudgement:
    """Check an engine against the golden prompts in a file. Never raises: what is missing makes the outcome unknown."""
    try:
        record = None if path is None else load_golden(path)
    except GoldenUnreadable as error:
        return unknown_golden(str(error))
    if record is None:
        return unknown_golden("no golden prompts are recorded for this tier")
    return judge_golden(record, await read_golden(engine, record, budget_s=budget_s))
