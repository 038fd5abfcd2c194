"""Dumps of PyTorch's flight recorder: parsed in a child that runs none of their code, and what they say of the culprit."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.flight_recorder import (
    FlightReading,
    collect_flight_recorder,
    copy_dumps,
    whole_dumps,
)
from gpu_actions.snapshot.collectors.ranks import RankProcess, RanksReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.triage.culprit import Kind, culprits_of
from tests.gpu_actions.triage import builders as make
from tests.gpu_actions.triage.cases_serving import FLAT, HUNG


def dump(sequence: int, operation: str = "nccl:all_reduce") -> bytes:
    """Return a flight recorder dump in the form of PyTorch 2.9, as far as it is read."""
    entries = [
        {
            "frames": [], "record_id": number, "pg_id": 0, "process_group": ("0", "tp"), "collective_seq_id": number,
            "p2p_seq_id": 0, "op_id": number, "profiling_name": operation, "time_created_ns": 1, "input_sizes": [[8, 4096]],
            "input_dtypes": ["BFloat16"], "output_sizes": [[8, 4096]], "state": "completed" if number < sequence else "started",
            "is_p2p": False, "retired": number < sequence, "timeout_ms": 600000,
        }
        for number in range(max(1, sequence - 3), sequence + 1)
    ]  # fmt: skip
    return pickle.dumps({"version": "2.10", "pg_config": {}, "pg_status": {}, "entries": entries})


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run three ranks whose flight recorders write into the test's folder."""
    environment = {"PATH": os.environ["PATH"], "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(tmp_path / "trace_")}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(300)", "--rank", str(rank)], env=environment
        )
        for rank in range(3)
    ]
    yield ranks
    for process in ranks:
        process.kill()
        process.wait()


def source_of(ranks: list[subprocess.Popen[bytes]], *, stuck: bool = True) -> Source:
    reading = RanksReading(
        processes=tuple(
            RankProcess(pid=one.pid, rank=rank, state_first="S", state_last="S", age_s=60)
            for rank, one in enumerate(ranks)
        )
    )
    return Source(
        target=TriageTarget(),
        limits=TriageThresholds(),
        window_s=0,
        readings={"ranks": reading},
        is_stuck=lambda: stuck,
    )


async def test_dumps_of_real_processes_name_the_rank_that_is_behind(
    tier: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    with pytest.raises(CollectorSkipped, match="no rank has written"):
        await collect_flight_recorder(source_of(tier))
    for rank, sequence in enumerate((41, 40, 41)):
        (tmp_path / f"trace_{rank}").write_bytes(dump(sequence))
    with pytest.raises(CollectorSkipped, match="not stuck"):
        await collect_flight_recorder(source_of(tier, stuck=False))
    reading = await collect_flight_recorder(source_of(tier))
    assert [one.entries[0].sequence for one in reading.dumps] == [41, 40, 41]
    (culprit,) = culprits_of(stuck_with(reading))
    assert (culprit.rank, culprit.kind) == (1, Kind.BEHIND)


def stuck_with(reading: FlightReading) -> Snapshot:
    return make.healthy(engine=FLAT, completion=HUNG, ras=None, ranks=make.ranks(3), flight_recorder=reading)


class Bomb:
    """A pickle that would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


async def test_a_dump_that_would_run_code_runs_none_and_the_others_are_read(
    tier: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    secret = tmp_path / "secret"
    secret.write_bytes(dump(9))
    (tmp_path / "trace_0").write_bytes(pickle.dumps({"entries": [Bomb(ran)]}))
    (tmp_path / "trace_1").write_bytes(dump(12))
    (tmp_path / "trace_2").symlink_to(secret)
    reading = await collect_flight_recorder(source_of(tier))
    assert not ran.exists()
    assert "posix.system" in reading.dumps[0].problem
    assert reading.dumps[1].entries[0].sequence == 12
    assert "without following a link" in reading.dumps[2].problem
    assert culprits_of(stuck_with(reading)) == ()
    copies, refused = copy_dumps(source_of(tier).readings["ranks"], tmp_path)
    rows = [json.loads(line) for line in (await whole_dumps(copies)).splitlines()]
    assert not ran.exists() and "posix.system" in rows[0]["problem"], "nor does evidence"
    assert (rows[1]["entries_in_dump"], rows[1]["entries"][-1]["collective_seq_id"]) == (4, 12)
    assert [one.rank for one in refused] == [2]


BROKEN = (b"", b"no pickle", pickle.dumps([1]), pickle.dumps({"entries": 3}), dump(5)[:-9])


@pytest.mark.parametrize("content", BROKEN)
async def test_a_broken_dump_is_named(
    tier: list[subprocess.Popen[bytes]], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "trace_0").write_bytes(content)
    if not content:
        assert (await collect_flight_recorder(source_of(tier))).dumps[0].problem
        return
    with pytest.raises(CollectorFailed, match="no dump could be parsed"):
        await collect_flight_recorder(source_of(tier))
