"""`/loadtest plan|start|status|stop|compare|baseline`: run load tests, compare their results, and manage baselines."""

from bot.incidents.loadtest_results import LoadTestResults
from bot.presenter import loadtests as texts
from bot.store.records import UserError
from gpu_actions.loadtest.action import SPEC
from handlers.arguments import Grammar, did_you_mean, parse, split
from handlers.call import Call
from handlers.command import action_command, host_of, start_run

BASELINE_VERBS = ("list", "show", "set", "record")


async def compare(call: Call, text: str) -> None:
    """Compare `[host] [RUN [BASELINE or RUN]]`; by default the newest run with the baseline in force."""
    names = [word.lower() for word in split(text)]
    is_named = bool(names) and names[0] in call.services.hosts
    host = names.pop(0) if is_named else call.services.default_host()
    if len(names) > 2:
        raise UserError(
            f"compare takes a run and what to compare it with; you named {len(names)}: {', '.join(names)}."
        )
    candidate, reference = (*names, None, None)[:2]
    async with call.loading("Comparing the two ..."):
        outcome = await _results(call).compare(candidate, reference, host=host)
    await call.answer(texts.comparison_message(candidate or f"the latest run on {host}", outcome))


async def baseline(call: Call, text: str) -> None:
    """Serve `[list]`, `show|set NAME` and `record NAME [host] [options]`."""
    verb, _, rest = text.partition(" ")
    verb = verb.lower() or "list"
    if verb not in BASELINE_VERBS:
        known = f" It takes: {', '.join(BASELINE_VERBS)}."
        hint = did_you_mean(verb, BASELINE_VERBS, known)
        raise UserError(f"{call.slash(SPEC.name, 'baseline')} has no subcommand {verb!r}.{hint}")
    results = _results(call)
    if verb == "list":
        await call.answer(texts.baselines_message(await results.baselines(), call.context))
        return
    name, _, options = rest.strip().partition(" ")
    name = name.lower()
    if not name or "=" in name:
        raise UserError(f"Say which baseline: {call.slash(SPEC.name, f'baseline {verb} NAME')}.")
    if verb == "record":
        grammar = Grammar(name=call.slash(SPEC.name, "baseline record"), subcommands=("start",))
        words = parse(f"start {options}", grammar, call.services.hosts)
        if "baseline" in words.options:
            raise UserError(f"The baseline is named twice: {name} and {words.options['baseline']}.")
        await start_run(call, SPEC.name, host_of(call, words), {**words.options, "baseline": name})
    elif verb == "show":
        await call.answer(texts.baseline_message(await results.baseline(name), call.context))
    else:
        access = call.services.access
        await access.require(call.person, access.change_role, f"put the baseline {name} in force")
        known_baseline = await results.put_in_force(name)
        done = f"{name} is now the baseline in force for its workload"
        await call.answer(texts.baseline_message(known_baseline, call.context, done=done))


def _results(call: Call) -> LoadTestResults:
    return LoadTestResults(call.services.runs, call.services.settings.state_dir / "baselines")


COMMAND = action_command(
    SPEC,
    usages={
        "compare [RUN] [BASELINE or RUN]": "compare two results: a verdict per metric with its interval",
        "baseline list": "list the baselines and show which are in force",
        "baseline show NAME": "show one baseline",
        "baseline record NAME [host]": "run three load tests on a healthy host and keep them as a baseline",
        "baseline set NAME": "put another baseline in force for its workload",
    },
    free_text={"compare": compare, "baseline": baseline, "baselines": baseline},
)
