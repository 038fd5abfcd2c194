"""Mutation testing of the judging modules, with mutmut: `make mutation`, or `python -m tests.mutation [GROUP ...]`.

Each group is a set of modules and the fast unit tests that must notice a change in them. A group runs in a copy of the
project below `var/mutation`, because mutmut writes its mutants there. The results are kept beside it, and
docs/mutation.md is made from them and from `SURVIVORS`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

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


TRIAGE = "tests/gpu_actions/triage/"
JUDGED = (f"{TRIAGE}test_judgement.py",)
GROUPS = {
    "nvlink": Group(("gpu_actions/triage/checks/nvlink.py", "gpu_actions/triage/gpu_models.py"), JUDGED),
    "collective": Group(
        ("gpu_actions/triage/checks/collective.py", "gpu_actions/triage/culprit.py"),
        (*JUDGED, f"{TRIAGE}test_culprit.py"),
    ),
    "statistics": Group(
        ("gpu_actions/loadtest/statistics.py", "gpu_actions/loadtest/verdict.py"),
        ("tests/gpu_actions/loadtest/test_statistics.py",),
    ),
    "analysis": Group(
        ("gpu_actions/restore/analysis.py", "gpu_actions/restore/sequential.py"),
        ("tests/gpu_actions/restore/test_analysis.py", "tests/gpu_actions/restore/test_sequential.py"),
    ),
    "gpus": Group(("gpu_actions/triage/checks/gpus.py", "gpu_actions/triage/checks/strangers.py"), JUDGED),
    "links": Group(("gpu_actions/triage/checks/pcie.py", "gpu_actions/triage/checks/fabric.py"), JUDGED),
    "serving": Group(
        (
            "gpu_actions/triage/checks/serving.py",
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
    "approvals": Group(("bot/runs/approvals.py",), ("tests/bot/runs/test_approvals.py",)),
    "access": Group(("bot/slack/access.py",), ("tests/bot/slack/test_access.py",)),
}

SURVIVORS: dict[str, str] = {}
"""Why a mutant that lives is let live: the beginning of its name -> the reason."""


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
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        "track_dependencies": False,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = "\n".join([project, "[tool.mutmut]", *lines, ""])
    tomllib.loads(text)
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def run(name: str, *, mutmut: str, children: int) -> dict[str, object]:
    """Run one group and return its counts and the differences of the mutants that live."""
    folder = prepare(name, GROUPS[name])
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "output.txt").open("wb") as output:
        subprocess.run(
            [mutmut, "run", "--max-children", str(children)],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    codes: dict[str, int | None] = {}
    for module in GROUPS[name].modules:
        meta = folder / "mutants" / f"{module}.meta"
        if not meta.is_file():
            raise SystemExit(f"{name}: mutmut made no mutants of {module}: read {folder / 'output.txt'}")
        codes |= json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
    living = sorted(key for key, code in codes.items() if code in (0, 33, None))
    shown = {key: _difference(folder, key, mutmut) for key in living}
    return {"mutants": len(codes), "living": shown}


def _difference(folder: Path, key: str, mutmut: str) -> str:
    result = subprocess.run([mutmut, "show", key], cwd=folder, capture_output=True, text=True, check=False)
    rows = [row for row in result.stdout.splitlines() if row[:1] in "+-" and row[:3] not in ("+++", "---")]
    return " -> ".join(" ".join(row[1:].split()) for row in rows)[:400]


def reason_of(key: str) -> str:
    """Return why a mutant is let live, or an empty string."""
    return next((reason for begin, reason in SURVIVORS.items() if key.startswith(begin)), "")


def render(results: dict[str, dict[str, object]]) -> str:
    """Return the document."""
    lines = [
        "# Tests that notice",
        "",
        "Generated by `make mutation`: mutmut changes one expression of a judging module at a time, and the fast unit tests of",
        "that module must fail. `make mutation GROUPS=nvlink` runs one group, which takes minutes.",
        "",
        "| group | modules | mutants | killed | share |",
        "|---|---|---|---|---|",
    ]
    for name, group in GROUPS.items():
        if name not in results:
            continue
        mutants, living = int(str(results[name]["mutants"])), results[name]["living"]
        killed = mutants - len(living)  # type: ignore[arg-type]
        modules = ", ".join(f"`{module}`" for module in group.modules)
        lines.append(f"| {name} | {modules} | {mutants} | {killed} | {killed / max(1, mutants):.1%} |")
    lines += ["", "## What survives", ""]
    for name, row in results.items():
        for key, difference in dict(row["living"]).items():  # type: ignore[call-overload]
            why = reason_of(key) or "not killed yet"
            text = difference.replace("|", "\\|")
            lines.append(f"- `{key.removeprefix('gpu_actions.')}` ({name}): `{text}`. {why}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the named groups (all by default), keep the results, write the document. Exit 1 below the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], default=[])
    parser.add_argument("--mutmut", default="mutmut", help="mutmut's program")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    below = 0
    for name in options.groups or GROUPS:
        found = run(name, mutmut=options.mutmut, children=options.children)
        known[name] = found
        killed = 1 - len(found["living"]) / max(1, int(str(found["mutants"])))  # type: ignore[arg-type]
        print(f"{name}: {killed:.1%} of {found['mutants']} mutants killed", flush=True)
        below += killed < GOAL
        RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        PATH.write_text(render({key: known[key] for key in GROUPS if key in known}), encoding="utf-8")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
