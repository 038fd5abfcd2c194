"""A load test as part of a step: it runs in a child process and yields one line of figures and its files as artifacts."""

from gpu_actions.action import StepContext, StepFailed
from gpu_actions.config.policies import LoadPolicy
from gpu_actions.host import Tier
from gpu_actions.loadtest.child import LoadTestBroken, run_in_child
from gpu_actions.loadtest.report import HTML_NAME, JSON_NAME, PNG_NAME, files_of, summary_table, summary_text
from gpu_actions.loadtest.request import spec_for_tier
from gpu_actions.loadtest.result import LoadTestResult, RunVerdict
from gpu_actions.loadtest.target import LoadTestRefused
from gpu_actions.models import Artifact, Frozen, JsonObject


class UnderLoad(Frozen):
    """A finished load test: its result, a one-line summary, and its files."""

    result: LoadTestResult
    summary: str
    artifacts: tuple[Artifact, ...]

    @property
    def passed(self) -> bool:
        return self.result.verdict is RunVerdict.PASSED

    @property
    def data(self) -> JsonObject:
        """Return the step's data: the verdict, and a text for the thread."""
        return {
            "verdict": self.result.verdict.value,
            "reasons": list(self.result.reasons),
            "thread_text": summary_text(self.result),
            "table": summary_table(self.result),
        }


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def summarise(result: LoadTestResult) -> str:
    """Return the figures in one line, with the reasons if it failed or is void."""
    rates, latency, requests = result.rates, result.latency, result.requests
    line = (
        f"{result.verdict.value}: {requests.ok} of {requests.sent} requests ok, "
        f"{rates.achieved_qps:.1f} of {rates.target_qps:g} requests/s, {rates.output_tokens_per_s:.0f} tokens/s, "
        f"TTFT p50 {_ms(latency.ttft.p50.value_ms)}, p99 {_ms(latency.ttft.p99.value_ms)}, "
        f"E2E p99 {_ms(latency.e2e.p99.value_ms)}"
    )
    return f"{line}: {'; '.join(result.reasons)}" if result.reasons else line


async def load_test(
    context: StepContext, tier: Tier, *, url: str, policy: LoadPolicy, name: str, folder: str
) -> UnderLoad:
    """Run a load test in a child process, with its files in the run's folder. Raises StepFailed if it cannot run."""
    spec = spec_for_tier(policy, tier, url=url, name=name)
    out_dir = context.workdir / folder
    try:
        result = await run_in_child(spec, out_dir, lambda now: context.report(now.text, now.fraction))
    except (LoadTestRefused, LoadTestBroken) as error:
        refused = isinstance(error, LoadTestRefused)
        raise StepFailed(
            f"the load test {'cannot run' if refused else 'broke'}: {error}",
            next_action="check the tier's url and model in the settings"
            if refused
            else "this is a defect of gpu-oncall: its log has more",
        ) from error
    titles = {file: f"{name}: {file}" for file in (JSON_NAME, HTML_NAME, PNG_NAME)}
    return UnderLoad(result=result, summary=summarise(result), artifacts=files_of(out_dir, titles))
