"""`/loadtest start|status|stop|compare|baseline`: an open-loop load test with figures that can be believed."""

import dataclasses

from bot.incidents.load_results import LoadResults
from bot.presenter import loadtests as texts
from bot.presenter.help import SubcommandHelp
from bot.store.records import UserError
from gpu_actions.loadtest.action import SPEC
from handlers.arguments import nearest, parse, split
from handlers.call import Call
from handlers.command import Command, action_command, host_of, start_run

BASELINE_ACTIONS = ("list", "show", "set", "record")


class LoadTestCommand(Command):
    """Like the other commands, but what stands behind `compare` and `baseline` are names of runs and baselines."""

    async def run(self, call: Call, text: str) -> None:
        """Parse and do. Raises UserError for words that are not understood."""
        first, _, rest = text.strip().partition(" ")
        match first.lower().lstrip("-"):
            case "compare":
                await compare(call.about("/loadtest compare"), rest)
            case "baseline" | "baselines":
                await baseline(call.about("/loadtest baseline"), rest)
            case _:
                await super().run(call, text)


async def compare(call: Call, text: str) -> None:
    """`compare [RUN [BASELINE or RUN]]`: the newest run against the baseline in force, where nothing is named."""
    names = [word.lower() for word in split(text)]
    host = call.services.settings.default_host.name
    if names and names[0] in call.services.hosts:
        host = names.pop(0)
    if len(names) > 2:
        raise UserError(
            f"compare takes a run and what to compare it with; you named {len(names)}: {', '.join(names)}."
        )
    candidate, yardstick = (*names, None, None)[:2]
    async with call.loading("Comparing the two ..."):
        outcome = await _results(call).compare(candidate, yardstick, host=host)
    await call.answer(texts.comparison_message(candidate or f"the latest run on {host}", outcome, call.view))


async def baseline(call: Call, text: str) -> None:
    """`baseline [list]`, `baseline show|set NAME`, `baseline record NAME [host] [options]`."""
    action, _, rest = text.strip().partition(" ")
    action = action.lower() or "list"
    if action not in BASELINE_ACTIONS:
        meant = nearest(action, BASELINE_ACTIONS)
        hint = f" Did you mean {meant!r}?" if meant else f" It knows: {', '.join(BASELINE_ACTIONS)}."
        raise UserError(f"{action!r} is not something /loadtest baseline knows.{hint}")
    results = _results(call)
    if action == "list":
        await call.answer(texts.baselines_message(await results.baselines(), call.view))
        return
    name, _, options = rest.strip().partition(" ")
    name = name.lower()
    if not name or "=" in name:
        raise UserError(f"Say which baseline: /loadtest baseline {action} NAME.")
    if action == "record":
        await _record(call, name, options)
    elif action == "show":
        await call.answer(texts.baseline_message(await results.baseline(name), call.view))
    else:
        await call.services.access.require(
            call.person, call.services.access.change_role, f"change the judging baseline to {name}"
        )
        known = await results.put_in_force(name)
        await call.answer(
            texts.baseline_message(known, call.view, done=f"{name} judges its workload from now on")
        )


async def _record(call: Call, name: str, options: str) -> None:
    grammar = dataclasses.replace(COMMAND.grammar, default="start")
    words = parse(f"start {options}", grammar, call.services.hosts)
    if "baseline" in words.options:
        raise UserError(f"The baseline is named twice: {name} and {words.options['baseline']}.")
    await start_run(call, SPEC.name, host_of(call, words), {**words.options, "baseline": name})


def _results(call: Call) -> LoadResults:
    return LoadResults(call.services.runs, call.services.settings.state_dir / "baselines")


_RUNS = action_command(SPEC)
COMMAND = LoadTestCommand(
    name=SPEC.name,
    summary=SPEC.summary,
    grammar=dataclasses.replace(
        _RUNS.grammar, subcommands=(*_RUNS.grammar.subcommands, "compare", "baseline")
    ),
    usages=(
        *_RUNS.usages,
        SubcommandHelp("compare [RUN] [BASELINE or RUN]", "is it as good? a verdict with its intervals"),
        SubcommandHelp("baseline list", "the baselines, and which of them judge"),
        SubcommandHelp("baseline show NAME", "what one holds"),
        SubcommandHelp("baseline record NAME [host]", "three runs on a good day, kept as the judge"),
        SubcommandHelp("baseline set NAME", "let another one judge its workload"),
    ),
    subcommands=_RUNS.subcommands,
)
