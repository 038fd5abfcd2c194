"""The interface of checks.

A check is one file in `checks/`: its rules, the readings of the snapshot that it judges, and a pure function from these to
findings. Its registry line is in `triage.registry`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Finding
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.progress import TierProgress, progress_of
from gpu_actions.triage.baselines import TriageBaseline
from gpu_actions.triage.rule import Rules


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """A snapshot and what it is judged by."""

    snapshot: Snapshot
    thresholds: TriageThresholds
    baseline: TriageBaseline = field(default_factory=TriageBaseline)

    @property
    def has_gpus(self) -> bool:
        """True if GPU checks apply: not on a host without GPUs, nor on one without an NVIDIA driver."""
        return self.snapshot.expected.gpus != 0 and not self.snapshot.skipped("nvml")

    @cached_property
    def progress(self) -> TierProgress:
        """The tier's progress within the window."""
        return progress_of(self.snapshot, self.thresholds)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check. `reads` are the fields of the snapshot that it judges; a test keeps it true."""

    title: str
    rules: Rules
    reads: frozenset[str]
    judge: Callable[[CheckContext], Iterator[Finding]]


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Format a number with its noun: `1 rank`, `2 ranks`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
