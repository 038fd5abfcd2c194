"""Nothing names a kind of engine, router or unit outside the kind's own files and the registry.

The files of a kind begin with its name: `haproxy.py`, `haproxy_socket.py`.

Names, strings and f-strings count; comments, docstrings, settings examples, docs, the demo and tests do not.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_actions.serving.registry import ENGINES, ROUTERS, UNITS

ROOT = Path(__file__).parents[1]
PLAIN_WORDS = {"reference", "openai", "process", "commands", "container"}
"""Kinds whose names also mean something else."""

UNIT_NAMES = {unit.model_fields["driver"].default for unit in UNITS}
ROUTER_NAMES = {router.model_fields["kind"].default for router in ROUTERS}
NAMES = sorted({*ENGINES, *UNIT_NAMES, *ROUTER_NAMES} - PLAIN_WORDS)
KINDS = re.compile("|".join(map(re.escape, NAMES)), re.IGNORECASE)
REGISTRY = "gpu_actions/serving/registry.py"
BUILT_ON = {"gpu_actions/serving/engines/reference.py": {"vllm"}}
"""The reference engine exports vLLM's metric names."""

NOT_A_KIND = re.compile(r"systemd-journal|/sys/fs/cgroup/systemd")
"""A group of users that may read the kernel log, and where the kernel mounts a hierarchy."""


def named_kinds(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, kind and text of every name and string in a module that names a kind."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        texts = [value for _, value in ast.iter_fields(node) if isinstance(value, str)]
        if isinstance(node, ast.Constant):
            texts = (
                [str(node.value)]
                if isinstance(node.value, str | bytes) and id(node) not in docstrings
                else []
            )
        for text in texts:
            for found in KINDS.findall(NOT_A_KIND.sub("", text)):
                yield getattr(node, "lineno", 0), found.lower(), text


def is_own_file(path: str, kind: str) -> bool:
    """Return True for the files of a kind, the files beside it that only it uses, and the registry."""
    file = Path(path)
    of_kind = path.startswith("gpu_actions/serving/") and file.stem.split("_")[0] == kind
    return of_kind or path == REGISTRY or kind in BUILT_ON.get(path, ())


def violations(path: str, source: str) -> list[str]:
    return [
        f"{path}:{line}: {kind} in {text[:80]!r}"
        for line, kind, text in named_kinds(source)
        if not is_own_file(path, kind)
    ]


def test_the_kinds_are_those_of_the_registry() -> None:
    assert {"vllm", "sglang", "haproxy", "systemd"} <= set(NAMES)


def test_no_kind_is_named_outside_its_own_file_and_the_registry() -> None:
    found = [
        violation
        for package in ("bot", "handlers", "gpu_actions")
        for file in sorted((ROOT / package).rglob("*.py"))
        for violation in violations(str(file.relative_to(ROOT)), file.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "planted",
    [
        'if engine.kind == "vllm": ...',
        "name = f'sglang:{figure}'",
        "from gpu_actions.serving.routers.haproxy_socket import HaproxySocket",
        "def systemd_checks(): ...",
        "unit.systemd = 1",
        "PAGE = b'vllm:running'",
    ],
)
def test_a_planted_name_of_a_kind_is_found(planted: str) -> None:
    assert violations(
        "gpu_actions/loadtest/planted.py", f'"""A docstring may name vLLM."""\n{planted}  # systemd\n'
    )


def test_docstrings_comments_and_own_files_may_name_a_kind() -> None:
    harmless = 'X = 1  # vllm\n"""Read from SGLang."""\n\n\ndef f() -> None:\n    """Ask systemd."""\n'
    assert not violations("bot/app.py", harmless)
    assert not violations("gpu_actions/serving/engines/vllm.py", "kind = 'vllm'")
    assert not violations("gpu_actions/serving/routers/haproxy_socket.py", "class HaproxySocket: ...")
    assert violations("gpu_actions/serving/engines/sglang.py", "kind = 'vllm'")
    assert violations("bot/vllm.py", "kind = 'vllm'")
