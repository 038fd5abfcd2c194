"""Golden prompts: does the tier still answer as it did on a good day?

They are asked after the window, and only if the synthetic completion was answered and nothing is queued: an engine that is
down, hung or overloaded has a clearer fault.
"""

import asyncio

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.serving.engines.settings import EngineSettings
from gpu_actions.serving.golden.judgement import (
    GoldenJudgement,
    GoldenOutcome,
    judge_golden,
    unknown_golden,
)
from gpu_actions.serving.golden.reading import read_golden
from gpu_actions.serving.golden.record import GoldenRecord, GoldenUnreadable, load_golden
from gpu_actions.serving.registry import build_engine
from gpu_actions.snapshot.collector import Collector, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.engine import name_of

_WORST_FIRST = (
    (GoldenOutcome.DIFFERS, "logprobs"),
    (GoldenOutcome.DIFFERS, "tokens"),
    (GoldenOutcome.UNKNOWN, ""),
    (GoldenOutcome.MATCHES, ""),
)


class GoldenCheckReading(Frozen):
    """How the tier's answers compare with the record. The snapshot has only the judgement, not a copy of the record.

    `replicas` has that of each replica with an address of its own, by name; `judgement` is then the worst of them.
    """

    judgement: GoldenJudgement
    replicas: dict[str, GoldenJudgement] = Field(default_factory=dict)
    idle: bool = False
    seconds: float = 0.0


async def collect_golden(source: Source) -> GoldenCheckReading:
    """Ask as many golden prompts as the budget allows. Raises CollectorSkipped if none are recorded, or the engine has another
    fault."""
    target, url = source.target, source.engine_url
    if url is None or target.golden is None or not target.completion:
        raise CollectorSkipped("no golden prompts belong to this target")
    try:
        record = load_golden(target.golden)
    except GoldenUnreadable as error:
        return GoldenCheckReading(judgement=unknown_golden(str(error)))
    if record is None:
        raise CollectorSkipped("no golden prompts are recorded (gpu-oncall golden record)")
    completion, engine = source.readings.get("completion"), source.readings.get("engine")
    if completion is None or completion.outcome != "ok":
        raise CollectorSkipped("the synthetic completion was not answered")
    if engine is not None and engine.samples and engine.samples[-1].waiting:
        raise CollectorSkipped("requests are queued at the engine")
    urls = [one.url for one in completion.replicas if one.outcome == "ok"] or [url]
    readings = await asyncio.gather(*(_ask(one, record, source) for one in urls))
    if len(urls) == 1:
        return readings[0]
    replicas = {name_of(one): reading.judgement for one, reading in zip(urls, readings, strict=True)}
    where, worst = min(replicas.items(), key=lambda row: _WORST_FIRST.index((row[1].outcome, row[1].basis)))
    if worst.outcome is not GoldenOutcome.MATCHES:
        worst = worst.model_copy(update={"summary": f"replica {where}: {worst.summary}"})
    return GoldenCheckReading(
        judgement=worst,
        replicas=replicas,
        idle=all(one.idle for one in readings),
        seconds=max(one.seconds for one in readings),
    )


async def _ask(url: str, record: GoldenRecord, source: Source) -> GoldenCheckReading:
    target = source.target
    settings = EngineSettings(
        kind=target.engine_kind or record.engine_kind,
        url=url,
        model=target.model or record.model,
        api_key=target.api_key,
    )
    reading = await read_golden(build_engine(settings), record, budget_s=source.limits.golden_budget_s)
    return GoldenCheckReading(
        judgement=judge_golden(record, reading, need_all=False), idle=reading.idle, seconds=reading.seconds
    )


GOLDEN = Collector(
    collect=collect_golden,
    # after the window, plus what the last request and the last readings of the counters may take
    deadline_s=lambda source: source.limits.golden_budget_s + 1.5,
    after=("engine", "completion"),
)
