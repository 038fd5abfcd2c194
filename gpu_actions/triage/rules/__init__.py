"""The one table of rules: what each check finds, how bad it is, which verdict it leads to, and what to do about it.

The judgement makes every finding from a row of this table, and docs/triage-rules.md is this table as text.
"""

from gpu_actions.triage.rules.hardware import HARDWARE_RULES
from gpu_actions.triage.rules.kernel import KERNEL_RULES
from gpu_actions.triage.rules.rule import CAUSES, Rule, rank_of_verdict
from gpu_actions.triage.rules.serving import SERVING_RULES

RULES: dict[str, Rule] = {rule.id: rule for rule in (*HARDWARE_RULES, *KERNEL_RULES, *SERVING_RULES)}

__all__ = ["CAUSES", "RULES", "Rule", "rank_of_verdict"]
