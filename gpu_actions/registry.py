"""All actions by name. Importing them registers their step functions, so whoever walks a plan calls `actions()` first."""

from gpu_actions.action import ActionSpec


def actions() -> dict[str, ActionSpec]:
    """Every action of the product, by its name in commands."""
    from gpu_actions.fallback.plan import SPEC as FALLBACK
    from gpu_actions.forensics.action import SPEC as FORENSICS
    from gpu_actions.loadtest.action import SPEC as LOADTEST
    from gpu_actions.restore.plan import SPEC as RESTORE
    from gpu_actions.trace.action import SPEC as TRACE
    from gpu_actions.triage.action import SPEC as TRIAGE

    return {spec.name: spec for spec in (TRIAGE, FALLBACK, LOADTEST, TRACE, FORENSICS, RESTORE)}
