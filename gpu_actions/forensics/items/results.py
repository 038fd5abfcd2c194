"""The newest results of this host's runs, under the names that the runbook archives them by."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gpu_actions.forensics.item import ITEM_CAP_BYTES, Collected, Evidence, Missing, Scope


def _newest(scope: Scope, pattern: str) -> Path | None:
    found = [path for path in (scope.host.state_dir / "runs").glob(pattern) if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _result(path: str, pattern: str, source: str) -> Evidence:
    def where_one_exists(scope: Scope) -> Sequence[Scope]:
        return () if _newest(scope, pattern) is None else (scope,)

    async def collect(scope: Scope) -> Collected:
        return await asyncio.to_thread(partial(_read, scope, pattern))

    return Evidence(path=path, source=source, collect=collect, when=where_one_exists)


def _read(scope: Scope, pattern: str) -> Collected:
    path = _newest(scope, pattern)
    if path is None:
        raise Missing("it was removed meanwhile")
    with path.open("rb") as file:
        raw = file.read(ITEM_CAP_BYTES + 1)
    text = raw[:ITEM_CAP_BYTES].decode(errors="replace")
    return Collected(text=text, truncated=len(raw) > ITEM_CAP_BYTES)


benchmark = _result(
    "artifacts/fallback_benchmark.json", "*/fallback_benchmark.json", "the newest warm-up of the fallback"
)
validation = _result(
    "artifacts/single_gpu_fallback/load_test.json",
    "*/single_gpu_fallback/load_test.json",
    "the newest validation of the fallback",
)
load_test = _result("artifacts/load_test_latest/load_test.json", "*/*/load_test.json", "the newest load test")
trace = _result("artifacts/trace_summary.json", "*/trace_summary.json", "the newest trace, tabulated")
