"""`gpu-oncall golden`: record golden prompts of a tier on a good day, and check a tier against them."""

import typer

from bot.hosts import Hosts
from bot.settings.model import Settings
from bot.store.records import UserError
from gpu_actions.config.host import TierName
from gpu_actions.host import Host
from gpu_actions.serving.golden.check import check_golden
from gpu_actions.serving.golden.judgement import GoldenOutcome
from gpu_actions.serving.golden.record import GoldenUnreadable, save_golden
from gpu_actions.serving.golden.recording import GoldenRefused, record_golden

USAGE_ERROR = 2
CHECK_BUDGET_S = 120.0
EXIT_CODES = {GoldenOutcome.MATCHES: 0, GoldenOutcome.DIFFERS: 1, GoldenOutcome.UNKNOWN: 4}


def _find(settings: Settings, host: str | None) -> Host:
    hosts = Hosts(settings)
    return hosts.get(hosts.name(host))


async def record(
    settings: Settings, *, host: str | None, tier: TierName, repeats: int, concurrency: int
) -> int:
    """Record the tier's golden prompts, in place of older ones. Return the exit code: 0 recorded, 1 refused, 2 wrong usage."""
    try:
        found = _find(settings, host)
        path = found.golden_path(tier)
        if path is None:
            raise UserError("the settings name no state_dir for the baselines")
        recorded = await record_golden(
            found.tiers[tier].engine,
            host=found.name,
            tier=tier,
            repeats=repeats,
            concurrency=concurrency,
            timeout_s=found.tiers[tier].config.engine.request_timeout_s,
            report=lambda line: typer.echo(f"  {line}", err=True),
        )
        save_golden(recorded, path)
    except UserError as error:
        typer.echo(f"golden: {error}", err=True)
        return USAGE_ERROR
    except (GoldenRefused, GoldenUnreadable, OSError) as error:
        typer.echo(f"golden: nothing was recorded: {error}", err=True)
        return 1
    kind = "exact tokens and log-probabilities" if recorded.exact else "log-probabilities only"
    version = f" {recorded.engine_version}" if recorded.engine_version else ""
    typer.echo(
        f"recorded {len(recorded.prompts)} golden prompts of {found.name} {tier} ({recorded.engine_kind}{version}, "
        f"{recorded.model}): {kind}; spread {recorded.idle_spread_nats:.3f} nats idle, "
        f"{recorded.load_spread_nats:.3f} under load\n{path}"
    )
    return 0


async def check(settings: Settings, *, host: str | None, tier: TierName) -> int:
    """Check the tier against its golden prompts. Return the exit code: 0 matches, 1 differs, 2 wrong usage, 4 unknown."""
    try:
        found = _find(settings, host)
    except UserError as error:
        typer.echo(f"golden: {error}", err=True)
        return USAGE_ERROR
    engine = found.tiers[tier].engine
    judgement = await check_golden(engine, found.golden_path(tier), budget_s=CHECK_BUDGET_S)
    typer.echo(f"{judgement.outcome.value}: {judgement.summary}")
    if judgement.action:
        typer.echo(f"What to do: {judgement.action}")
    return EXIT_CODES[judgement.outcome]
