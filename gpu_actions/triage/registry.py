"""The registry of checks: one line each. docs/triage-rules.md is generated from it."""

from gpu_actions.triage.check import Check
from gpu_actions.triage.checks.clocks import CLOCKS
from gpu_actions.triage.checks.collective import COLLECTIVE
from gpu_actions.triage.checks.completion import COMPLETIONS
from gpu_actions.triage.checks.crashes import CRASHES
from gpu_actions.triage.checks.deep import DEEP
from gpu_actions.triage.checks.fabric import FABRIC
from gpu_actions.triage.checks.golden import GOLDEN
from gpu_actions.triage.checks.gpus import GPUS
from gpu_actions.triage.checks.kernel_log import KERNEL_LOG
from gpu_actions.triage.checks.nvlink import NVLINK
from gpu_actions.triage.checks.pcie import PCIE
from gpu_actions.triage.checks.router import ROUTER
from gpu_actions.triage.checks.serving import SERVING
from gpu_actions.triage.checks.strangers import STRANGERS
from gpu_actions.triage.rule import Rule

CHECKS: tuple[Check, ...] = (
    SERVING,
    COMPLETIONS,
    CRASHES,
    GOLDEN,
    COLLECTIVE,
    ROUTER,
    GPUS,
    CLOCKS,
    STRANGERS,
    NVLINK,
    FABRIC,
    PCIE,
    KERNEL_LOG,
    DEEP,
)
"""All checks. Findings of the same severity keep this order."""

RULES: dict[str, Rule] = {rule.id: rule for check in CHECKS for rule in check.rules.values()}
