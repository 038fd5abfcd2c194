"""Two shared engines, with one rank and with two, and a factory for tests that need their own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.demo.engine.running import RunningEngine

MakeEngine = Callable[..., RunningEngine]


@pytest.fixture(scope="package")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """One rank."""
    folder = tmp_path_factory.mktemp("single")
    engine = RunningEngine(folder / "log", "--max-num-seqs", "8", "--model-name", "tiny")
    yield engine.ready()
    engine.close()


@pytest.fixture(scope="package")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """Two ranks over gloo, with a profiler."""
    folder = tmp_path_factory.mktemp("pair")
    engine = RunningEngine(
        folder / "log",
        "--tensor-parallel-size",
        "2",
        "--profiler-dir",
        str(folder / "traces"),
        "--max-num-seqs",
        "8",
    )
    yield engine.ready()
    engine.close()


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[MakeEngine]:
    """Start engines for one test, and kill them after it."""
    made: list[RunningEngine] = []

    def make(*arguments: str) -> RunningEngine:
        made.append(RunningEngine(tmp_path / f"log{len(made)}", *arguments))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
