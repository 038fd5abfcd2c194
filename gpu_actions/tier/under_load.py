"""A load test as part of a step: it runs in a child process and yields one line of figures and its files as artifacts."""

from pathlib import Path

from gpu_actions.action import StepContext, StepFailed
from gpu_actions.config.policies import LoadPolicy
from gpu_actions.host import Tier
from gpu_actions.loadtest.child import LoadTestBroken, run_in_child
from gpu_actions.loadtest.report import summary_table, summary_text
from gpu_actions.loadtest.result import LoadTestResult, RunVerdict
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import LoadTestRefused
from gpu_actions.models import Artifact, Frozen, JsonObject
from gpu_actions.system.files import artifact_of

SHOWN = (".png", ".html", ".json")


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
    spec = LoadSpec.from_policy(
        policy,
        url=url,
        model=tier.engine.model,
        name=name,
        api_key=tier.config.engine.api_key,
        metrics_url=f"{tier.engine.url}/metrics",
        gpus=tier.config.gpus,
        tensor_parallel=tier.config.ranks,
    )
    out_dir = context.workdir / folder
    try:
        result = await run_in_child(spec, out_dir, lambda now: context.report(now.text, now.fraction))
    except LoadTestRefused as error:
        raise StepFailed(
            f"the load test cannot run: {error}", next_action="check the tier's url and model in the settings"
        ) from error
    except LoadTestBroken as error:
        raise StepFailed(
            f"the load test broke: {error}", next_action="this is a defect of gpu-oncall: its log has more"
        ) from error
    return UnderLoad(result=result, summary=summarise(result), artifacts=artifacts_in(out_dir, name))


def artifacts_in(folder: Path, name: str) -> tuple[Artifact, ...]:
    """Return the result files of a load test. The picture is shown in the thread."""
    files = sorted(path for path in folder.iterdir() if path.suffix in SHOWN) if folder.is_dir() else []
    return tuple(
        artifact_of(
            path, source="gpu_actions.loadtest", title=f"{name}: {path.name}", inline=path.suffix == ".png"
        )
        for path in files
    )
