"""The project's own engine, for drills and tests. It exports vLLM's metric names and names its trace files itself."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from gpu_actions.serving.engines.base import HttpEngine
from gpu_actions.serving.engines.vllm import METRIC_NAMES
from gpu_actions.serving.startup_phases import StartupPhase


class ReferenceEngine(HttpEngine):
    """The reference engine (docs/reference-engine.md). Its ranks carry `--rank N` in their arguments."""

    kind = "reference"
    metric_names = METRIC_NAMES
    batch_flag = "--max-num-seqs"
    startup_phases = tuple(
        StartupPhase(name, re.compile(rf"start-up: {said} took ([\d.]+) s"))
        for name, said in (
            ("imports", "import torch"),
            ("process group", "distributed init"),
            ("weights", "weights"),
            ("warm-up", "warm-up"),
        )
    )
    sleep_path = "/sleep"
    wake_path = "/wake_up"
    asleep_path = "/is_sleeping"
    sleep_hint = "start the reference engine with --enable-sleep-mode 1"
    profiler_hint = "start the reference engine with --profiler-dir /path/of/traces"

    @classmethod
    def trace_folder(cls, argv: Sequence[str], environment: Mapping[str, str]) -> str | None:
        """Return the folder of `--profiler-dir`."""
        return dict(pairwise(argv)).get("--profiler-dir")
