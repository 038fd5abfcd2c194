"""Does the tier answer correctly? Its golden prompts, as they were recorded on a good day."""

from collections.abc import Iterator

from gpu_actions.models import Finding, VerdictKind
from gpu_actions.serving.golden.judgement import GoldenOutcome
from gpu_actions.snapshot.collectors.golden import GoldenCheckReading
from gpu_actions.triage.check import Check, CheckContext
from gpu_actions.triage.rule import CRITICAL, OK, UNKNOWN, WATCH, Rules, rule

GOLDEN_PROMPTS = "golden prompts"

RULES = Rules(
    rule("serving.tokens_ok", OK, "the tier answers its golden prompts as recorded", source=GOLDEN_PROMPTS),
    rule(
        "serving.wrong_tokens", CRITICAL,
        "the tier answers quickly and wrongly: log-probabilities of recorded tokens moved beyond the engine's own spread",
        "Start the fallback, then restart the tier, so that its weights are loaded again, and run a deep triage. If its model "
        "was replaced on purpose, record the golden prompts again instead.",
        source=GOLDEN_PROMPTS, cause="wrong_output",
    ),
    rule(
        "serving.replica_wrong", CRITICAL,
        "a replica answers quickly and wrongly, while others answer their golden prompts as recorded",
        "Stop this replica, so that no request reaches it: the others still serve. Start it again, so that its weights are "
        "loaded anew, and run a deep triage of its GPUs. If it cannot be stopped alone, start the fallback.",
        source=f"{GOLDEN_PROMPTS}, by replica", cause="wrong_output", verdict=VerdictKind.WATCH,
    ),
    rule(
        "serving.tokens_changed", WATCH,
        "on an idle tier other tokens are generated than recorded, with log-probabilities within the engine's own spread",
        "Find out what changed (kernels, driver, parallelism). If it was on purpose, record the golden prompts again.",
        source=GOLDEN_PROMPTS, cause="wrong_output",
    ),
    rule(
        "serving.tokens_unknown", UNKNOWN,
        "golden prompts are recorded, but the tier could not be compared with them: other model or version, no answer",
        "If the engine is the right one, record them again on a good day: gpu-oncall golden record",
        source=GOLDEN_PROMPTS, verdict=VerdictKind.WATCH,
    ),
)  # fmt: skip


def check_golden_prompts(context: CheckContext) -> Iterator[Finding]:
    """Judge the tier's answers to its golden prompts."""
    reading = context.snapshot.golden
    if reading is None:
        if context.snapshot.failed("golden"):
            yield RULES.finding("serving.tokens_unknown", context.snapshot.why_not("golden"))
        return
    judgement = reading.judgement
    evidence = judgement.model_dump(exclude_none=True) | {"idle": reading.idle}
    if judgement.outcome is GoldenOutcome.MATCHES:
        yield RULES.finding("serving.tokens_ok", judgement.summary, **evidence)
    elif judgement.outcome is GoldenOutcome.UNKNOWN:
        yield RULES.finding("serving.tokens_unknown", judgement.summary, **evidence)
    elif judgement.basis == "tokens":
        yield RULES.finding("serving.tokens_changed", judgement.summary, **evidence)
    elif any(one.outcome is GoldenOutcome.MATCHES for one in reading.replicas.values()):
        yield _wrong_replicas(reading)
    else:
        yield RULES.finding("serving.wrong_tokens", judgement.summary, **evidence)


def _wrong_replicas(reading: GoldenCheckReading) -> Finding:
    """Return the finding of a tier of which some replicas answer wrongly and some as recorded."""
    wrong = {name: one for name, one in reading.replicas.items() if one.basis == "logprobs"}
    return RULES.finding(
        "serving.replica_wrong",
        f"replica {', '.join(wrong)} of {len(reading.replicas)} answers wrongly: {next(iter(wrong.values())).summary}",
        subject=f"replica {next(iter(wrong))}",
        idle=reading.idle,
        replicas={name: one.model_dump(exclude_none=True) for name, one in wrong.items()},
    )


GOLDEN = Check(title="Golden prompts", rules=RULES, reads=frozenset({"golden"}), judge=check_golden_prompts)
