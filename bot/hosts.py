"""Builds a host of the settings: its drivers, and what triage judges it by. The one place where the bot does so."""

from bot.settings.model import Settings
from gpu_actions.config.host import HostConfig
from gpu_actions.host import Host, build_host


def built_host(settings: Settings, config: HostConfig) -> Host:
    """Build the drivers of a configured host. Creates its state folder; starts nothing."""
    return build_host(
        config,
        state_dir=settings.host_dir(config.name),
        thresholds=settings.triage,
        baselines_dir=settings.state_dir / "baselines",
    )
