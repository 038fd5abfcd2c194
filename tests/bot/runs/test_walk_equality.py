"""The durable engine executes any plan like the in-memory walk: same steps, same attempts, same endings."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from bot.runs.runs import Runs
from gpu_actions.plan import Plan
from gpu_actions.walk import walk
from tests.bot.toys import ONCALL, ToyHost, build, ended, start

if TYPE_CHECKING:
    from gpu_actions.host import Host

verbs = st.sampled_from(["count", "warn", "fail", "defect"])


@st.composite
def scripts(draw: st.DrawFn) -> dict[str, str]:
    """Words of a plan: some steps, a group of some with alternatives, and a compensation."""
    before = draw(st.lists(st.tuples(verbs, st.booleans()), max_size=2))
    group = draw(st.lists(st.tuples(verbs, st.booleans()), max_size=3))
    after = draw(st.lists(st.tuples(verbs, st.booleans()), max_size=2))
    words, number = [], 0
    for star, part in (("", before), ("*", group), ("", after)):
        for verb, goes_on in part:
            number += 1
            words.append(f"{verb}:{star}s{number}{'?' if goes_on else ''}")
    if not words:
        words = ["count:only"]
    settle = " ".join(f"{verb}:z{n}" for n, verb in enumerate(draw(st.lists(verbs, max_size=2))))
    tries = draw(st.integers(1, 3)) if group else 1
    return {"script": " ".join(words), "settle": settle, "tries": str(tries)}


def test_the_engine_executes_plans_like_the_in_memory_walk(tmp_path: Path) -> None:
    async def compare(runs: Runs, options: dict[str, str]) -> None:
        plan: Plan = await runs.plan(action="toy", host=None, options=options, requester=ONCALL)
        folder = tmp_path / "pure"
        (folder / "effects").mkdir(parents=True, exist_ok=True)
        host = cast("Host", ToyHost("toy", folder))
        pure = await walk(plan, host, run_id="pure", workdir=folder / "work")
        run = await ended(runs, (await start(runs, **options)).id)
        assert [(s.step_id, s.attempt, s.status.value) for s in run.steps] == [
            (end.outcome.step_id, end.outcome.attempt, end.outcome.status) for end in pure.steps
        ]
        assert run.status.value == pure.ended.status
        assert all(step.executions == 1 for step in run.steps)

    with asyncio.Runner() as runner:
        _, store, runs = build(tmp_path / "state")
        runner.run(runs.engine.launch())

        @settings(max_examples=40)
        @given(scripts())
        def any_plan(options: dict[str, str]) -> None:
            runner.run(compare(runs, options))

        try:
            any_plan()
        finally:
            runner.run(runs.engine.close())
            store.close()
