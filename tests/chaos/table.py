"""Writes docs/chaos.md from the tests' own marks: `python -m tests.chaos.table`.

Each test that makes a fault for real says so with `@pytest.mark.chaos(fault=..., at=..., after=...)`; this reads the marks from
the sources, without running or importing them.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
PATH = ROOT / "docs" / "chaos.md"
WORDS = ("fault", "at", "after")

HEAD = """# What happens when something breaks in the middle

Written by `python -m tests.chaos.table` from the tests that make each fault for real: real processes, a real HAProxy, a real
database file, with clients asking all the while where requests are spoken of. After each: exactly one terminal state, the
weights and units that it names, no process left over, nothing repeated that must not be.

"suite": runs with `make test`; "part": some of its places run there, the others with `make test-heavy`; "heavy": only there.
"""


class Mark(NamedTuple):
    """One test's word on one fault."""

    fault: str
    at: str
    after: str
    test: str
    runs: str


def marks() -> list[Mark]:
    """All marks of the tree, in the order of files and lines."""
    return [mark for path in sorted(TESTS.rglob("test_*.py")) for mark in marks_of(path)]


def marks_of(path: Path) -> Iterator[Mark]:
    """The marks of one file. Raises ValueError for one that does not say all three things in plain text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        ast.unparse(target): ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        named = {
            one.id
            for decorator in node.decorator_list
            for one in ast.walk(decorator)
            if isinstance(one, ast.Name)
        }
        parameters = [*decorators, *(constants[name] for name in named if name in constants)]
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.chaos":
                said = {word.arg: ast.literal_eval(word.value) for word in decorator.keywords}
                if decorator.args or set(said) != set(WORDS):
                    raise ValueError(f"{path}:{decorator.lineno}: chaos takes {', '.join(WORDS)}")
                test = f"{path.relative_to(TESTS)}::{node.name}"
                yield Mark(**said, test=test, runs=where_it_runs(decorators, parameters))


def where_it_runs(decorators: list[str], parameters: list[str]) -> str:
    """Whether the whole test is heavy, some of its parameters, or nothing of it."""
    if "pytest.mark.heavy" in decorators:
        return "heavy"
    return "part" if any("pytest.mark.heavy" in parameter for parameter in parameters) else "suite"


def render() -> str:
    """The document: a row for each place of a fault, the faults in the order of their first mark."""
    rows: dict[str, dict[tuple[str, str], list[Mark]]] = defaultdict(lambda: defaultdict(list))
    for mark in marks():
        rows[mark.fault][mark.at, mark.after].append(mark)
    lines = [HEAD, "| fault | at | after it | runs | shown by |", "|---|---|---|---|---|"]
    for fault in sorted(rows):
        for (at, after), found in rows[fault].items():
            runs = ", ".join(dict.fromkeys(mark.runs for mark in found))
            tests = "<br>".join(f"`{mark.test}`" for mark in found)
            lines.append(f"| {fault} | {at} | {after} | {runs} | {tests} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
