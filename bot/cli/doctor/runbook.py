"""The team's runbook: whether the paths and flags in it are still those of the plans."""

from bot.cli.runbook import Stored, runbook_text
from bot.incidents.runbook import drift
from bot.settings.model import Settings
from gpu_actions.serving.setup_checks import SetupCheck, ok, warning

FIX = "read what changed, then: gpu-oncall runbook"


async def check_runbook(settings: Settings) -> list[SetupCheck]:
    """Compare the written runbook with the plans of today. Without `runbook` in the settings there is none to compare."""
    path = settings.runbook
    if path is None:
        return []
    try:
        written = path.read_text(encoding="utf-8")
    except OSError as error:
        return [
            warning("runbook", f"{path} cannot be read: {error.strerror}", "write it: gpu-oncall runbook")
        ]
    found = drift(written, await runbook_text(settings, Stored()))
    if found:
        return [warning("runbook", f"{path} has drifted: {'; '.join(found)}", FIX)]
    return [ok("runbook", f"every path and flag in {path} is that of the plans")]
