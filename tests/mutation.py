"""Mutation testing of the judging modules, with mutmut: `make mutation`, or `python -m tests.mutation [GROUP ...]`.

Each group is a set of modules and the fast unit tests that must notice a change in them. A group runs in a copy of the
project below `var/mutation`, because mutmut writes its mutants there. The results are kept beside it, and
docs/mutation.md is made from them and from `REASONS`.
"""

import argparse
import ast
import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypedDict

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "var" / "mutation"
PATH = ROOT / "docs" / "mutation.md"
RESULTS = ROOT / "tests" / "data" / "mutation.json"
COPIED = ("gpu_actions", "bot", "handlers", "demo", "tests", "docs", "deploy", "manifest.yaml")
GOAL = 0.9


class Group(NamedTuple):
    """Modules that are changed, and the tests that must notice."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


class Result(TypedDict):
    """What a group's run found: digests of its functions, and the differences of the mutants that live."""

    mutants: int
    functions: dict[str, str]
    measured: str
    living: dict[str, str]


TRIAGE = "tests/gpu_actions/triage/"
JUDGED = (f"{TRIAGE}test_judgement.py",)
FASTER = "not in_this_state and not round_trip"
"""Tests of a judgement's table that say less than the one that compares every word."""
GROUPS = {
    "nvlink": Group(("gpu_actions/triage/checks/nvlink.py", "gpu_actions/triage/gpu_models.py"), JUDGED),
    "collective": Group(
        (
            "gpu_actions/triage/checks/collective.py",
            "gpu_actions/triage/suspicions.py",
            "gpu_actions/triage/culprit.py",
        ),
        (*JUDGED, f"{TRIAGE}test_culprit.py", "tests/gpu_actions/snapshot/test_flight_recorder.py"),
    ),
    "statistics": Group(
        ("gpu_actions/loadtest/statistics.py", "gpu_actions/loadtest/verdict.py"),
        ("tests/gpu_actions/loadtest/test_statistics.py", "tests/gpu_actions/loadtest/test_verdict.py"),
    ),
    "analysis": Group(
        ("gpu_actions/restore/analysis.py", "gpu_actions/restore/sequential.py"),
        ("tests/gpu_actions/restore/test_analysis.py", "tests/gpu_actions/restore/test_sequential.py"),
    ),
    "gpus": Group(
        (
            "gpu_actions/triage/checks/gpus.py",
            "gpu_actions/triage/checks/clocks.py",
            "gpu_actions/triage/checks/strangers.py",
        ),
        JUDGED,
    ),
    "links": Group(("gpu_actions/triage/checks/pcie.py", "gpu_actions/triage/checks/fabric.py"), JUDGED),
    "serving": Group(
        (
            "gpu_actions/triage/checks/serving.py",
            "gpu_actions/triage/checks/completion.py",
            "gpu_actions/triage/checks/crashes.py",
            "gpu_actions/triage/checks/golden.py",
            "gpu_actions/triage/checks/router.py",
        ),
        JUDGED,
    ),
    "kernel_log": Group(
        ("gpu_actions/triage/checks/kernel_log.py", "gpu_actions/triage/checks/deep.py"), JUDGED
    ),
    "rules": Group(
        ("gpu_actions/triage/judge.py", "gpu_actions/triage/rule.py", "gpu_actions/triage/fallback_gpu.py"),
        JUDGED,
    ),
    "approvals": Group(("bot/runs/approvals.py",), ("tests/bot/runs/test_decisions.py",)),
    "access": Group(("bot/slack/access.py",), ("tests/bot/slack/test_access.py",)),
}

REASONS = ROOT / "tests" / "data" / "mutation_reasons.tsv"
"""Why a mutant that lives is let live: module and function, a part of the difference, and the reason, with tabs between."""


def prepare(name: str, group: Group) -> Path:
    """Copy the project and write mutmut's configuration of a group. Return the folder."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in COPIED:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / part)
    settings = {
        "source_paths": ["gpu_actions", "bot", "handlers", "demo"],
        "only_mutate": list(group.modules),
        "also_copy": ["docs", "deploy", "manifest.yaml"],
        "pytest_add_cli_args_test_selection": list(group.tests),
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-k", FASTER],
        "track_dependencies": False,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = "\n".join([project, "[tool.mutmut]", *lines, ""])
    tomllib.loads(text)
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def run(name: str, *, mutmut: str, children: int, before: Result | None) -> Result:
    """Run one group and return its counts and the differences of the mutants that live.

    With the result of an earlier run, only the mutants that lived then and those of changed functions are tried.
    """
    group, folder = GROUPS[name], prepare(name, GROUPS[name])
    functions = {key: digest for module in group.modules for key, digest in _functions(module).items()}
    names: list[str] = []
    if before is not None:
        known = before["functions"]
        changed = {key for key, digest in functions.items() if known.get(key) != digest}
        names = [f"{key}__mutmut_*" for key in sorted(changed)]
        names += [
            key for key in before["living"] if key.rpartition("__mutmut_")[0] in functions.keys() - changed
        ]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if before is None or names:
        with (folder / "output.txt").open("wb") as output:
            subprocess.run(
                [mutmut, "run", "--max-children", str(children), *names],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
            )
    codes: dict[str, int | None] = {}
    for module in group.modules:
        meta = folder / "mutants" / f"{module}.meta"
        if not meta.is_file():
            raise SystemExit(f"{name}: mutmut made no mutants of {module}: read {folder / 'output.txt'}")
        codes |= json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
    tried = [key for key in codes if not names or any(fnmatch.fnmatch(key, one) for one in names)]
    if not any(codes[key] for key in tried):
        raise SystemExit(f"{name}: no mutant was tried: read {folder / 'output.txt'}")
    living = sorted(key for key in tried if codes[key] in (0, 33, None))
    return {
        "mutants": len(codes),
        "functions": functions,
        "measured": f"{datetime.now(UTC):%Y-%m-%d}",
        "living": {key: _difference(folder, key, mutmut) for key in living},
    }


def _functions(module: str) -> dict[str, str]:
    """Return a digest of each function of a module, by mutmut's name for it."""
    dotted = module.removesuffix(".py").replace("/", ".")
    found = {}
    for node in ast.parse((ROOT / module).read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        of_class = f"xǁ{node.name}ǁ" if isinstance(node, ast.ClassDef) else "x_"
        for one in inner:
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                digest = hashlib.sha256(ast.unparse(one).encode()).hexdigest()[:12]
                found[f"{dotted}.{of_class}{one.name}"] = digest
    return found


def _difference(folder: Path, key: str, mutmut: str) -> str:
    result = subprocess.run([mutmut, "show", key], cwd=folder, capture_output=True, text=True, check=False)
    rows = [row for row in result.stdout.splitlines() if row[:1] in "+-" and row[:3] not in ("+++", "---")]
    return " -> ".join(" ".join(row[1:].split()) for row in rows)[:400]


def read_reasons() -> list[tuple[str, str, str]]:
    """Return the rows of `REASONS`."""
    rows = [row.split("\t") for row in REASONS.read_text(encoding="utf-8").splitlines() if row]
    return [(function, shows, why) for function, shows, why in rows]


def reason_of(key: str, difference: str, reasons: list[tuple[str, str, str]]) -> str:
    """Return why a mutant is let live, or an empty string. `*` is any function."""
    function = _function(key)
    return next(
        (
            why
            for begin, shows, why in reasons
            if (begin == "*" or function.startswith(begin)) and shows in difference
        ),
        "",
    )


def _function(key: str) -> str:
    """Return module and function of a mutant: `triage.checks.nvlink._errors`."""
    module, _, name = key.rpartition("__mutmut_")[0].removeprefix("gpu_actions.").rpartition(".")
    return f"{module}.{name.removeprefix('x_').removeprefix('xǁ').replace('ǁ', '.')}"


def render(results: dict[str, Result]) -> str:
    """Return the document."""
    lines = [
        "# Tests that notice",
        "",
        "Generated by `make mutation`: mutmut changes one expression of a judging module at a time, and the fast unit tests of",
        "that module must fail. `make mutation GROUPS=nvlink` runs one group, which takes minutes; with `LIVING=1` only",
        "what lived before and what changed since. Reasons are kept in `tests/data/mutation_reasons.tsv`.",
        "",
        "| group | modules | mutants | killed | share | measured |",
        "|---|---|---|---|---|---|",
    ]
    for name, group in GROUPS.items():
        if row := results.get(name):
            killed = row["mutants"] - len(row["living"])
            modules = ", ".join(f"`{module}`" for module in group.modules)
            share = f"{killed / max(1, row['mutants']):.1%}"
            lines.append(
                f"| {name} | {modules} | {row['mutants']} | {killed} | {share} | {row['measured']} |"
            )
    reasons = read_reasons()
    for name, row in results.items():
        by_reason: dict[str, list[str]] = {}
        for key, difference in row["living"].items():
            text = difference.replace("|", "\\|")
            why = reason_of(key, difference, reasons) or "Not killed yet."
            by_reason.setdefault(why, []).append(f"- `{_function(key)}`: `{text}`")
        lines += ["", f"## What survives in {name}"]
        for why, rows in sorted(by_reason.items(), key=lambda item: item[0] == "Not killed yet."):
            lines += ["", why, "", *rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the named groups (all by default), keep the results, write the document. Exit 1 below the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], default=[])
    parser.add_argument("--mutmut", default="mutmut", help="mutmut's program")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--living", action="store_true", help="try only what lived before and what changed")
    options = parser.parse_args()
    known: dict[str, Result] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    below = 0
    for name in options.groups or GROUPS:
        before = known.get(name) if options.living else None
        known[name] = found = run(name, mutmut=options.mutmut, children=options.children, before=before)
        killed = 1 - len(found["living"]) / max(1, found["mutants"])
        print(f"{name}: {killed:.1%} of {found['mutants']} mutants killed", flush=True)
        below += killed < GOAL
        RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        PATH.write_text(render({key: known[key] for key in GROUPS if key in known}), encoding="utf-8")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
