"""NCCL RAS over real TCP: JSON, the old text protocol, and everything that is neither."""

import asyncio
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.ras import RasReading, collect_ras, parse_json_answer, parse_text_answer
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.triage.judge import judge
from tests.gpu_actions.fakes import Talk, ras_server, ras_talk
from tests.gpu_actions.triage import builders as make


def report(counts: list[int], *, missing: int | None = None) -> str:
    ranks = [
        {
            "rank": rank,
            "host": "10.0.0.1",
            "pid": 500 + rank,
            "cuda_dev": rank,
            "nvml_dev": rank,
            "status": {
                "init_state": 0,
                "async_error": 0,
                "finalize_called": False,
                "destroy_flag": False,
                "abort_flag": False,
            },
            "collective_counts": {"Broadcast": 1, "AllReduce": count},
        }
        for rank, count in enumerate(counts)
        if rank != missing
    ]
    lost = [
        {
            "rank": missing,
            "host": "10.0.0.1",
            "pid": 507,
            "status": {"unresponsive": True, "considered_dead": False},
        }
    ]
    communicator = {
        "hash": "0xd8a1",
        "secondary_hash": "0x1:0x2",
        "size": len(counts),
        "ranks_count": len(ranks),
        "missing_ranks_count": 0 if missing is None else 1,
        "ranks": ranks,
        "missing_ranks": [] if missing is None else lost,
    }
    document = {
        "nccl_version": "2.28.9",
        "cuda_runtime_version": 12080,
        "cuda_driver_version": 13000,
        "timestamp": "2026-11-23 10:00:00",
        "communicators_count": 1,
        "communicators": [communicator],
        "ras": {"collection_time_sec": 0.01, "timeouts_count": 0},
    }
    return json.dumps(document, indent=2)


TEXT = """NCCL version 2.27.5 compiled with CUDA 12.9
CUDA runtime version 12090, driver version 12090

Job summary
===========

  Nodes  Processes         GPUs  Processes     GPUs
(total)   per node  per process    (total)  (total)
      1          4            1          4        4

Communicators... (0.00s)
=============

Group     Comms     Nodes     Ranks     Ranks     Ranks    Status  Errors
    #  in group  per comm  per node  per comm  in group
    0         1         1         4         4         4   RUNNING  MISMATCH

Errors
======

#0-0 (cf264af53edbe986) INCOMPLETE
  Missing communicator data from 1 rank
  Rank 2 -- GPU 2 managed by process 1468032 on node 172.16.64.213

Warnings
========

#0-0 (cf264af53edbe986) MISMATCH
  Communicator ranks have different collective operation counts
  2 ranks have launched up to operation 7
  Rank 3 has launched up to operation 6 -- GPU 3 managed by process 1468033 on node 172.16.64.213

"""


def source_of(address: str, *, timeout_s: float) -> Source:
    limits = TriageThresholds(ras_timeout_s=timeout_s)
    return Source(target=TriageTarget(ras=address), limits=limits, window_s=0.1)


async def ask(talk: Talk, *, timeout_s: float = 0.4) -> RasReading:
    async with ras_server(talk) as address:
        return await collect_ras(source_of(address, timeout_s=timeout_s))


async def test_counts_that_differ_between_ranks_are_a_mismatch_in_both_polls() -> None:
    reading = await ask(ras_talk(report([7, 7, 7, 6])))
    assert [poll.outcome for poll in reading.polls] == ["ok", "ok"]
    communicator = reading.polls[1].communicators[0]
    assert communicator.mismatch and communicator.id == "0xd8a1"
    assert communicator.ranks[3].counts == {"Broadcast": 1, "AllReduce": 6}
    assert reading.polls[0].nccl_version == "2.28.9"


async def test_equal_counts_are_not_a_mismatch() -> None:
    assert not (await ask(ras_talk(report([7] * 4)))).polls[0].communicators[0].mismatch


@pytest.mark.parametrize(
    ("code", "serves", "verdict"), [(0, True, "healthy"), (7, True, "healthy"), (2, True, "watch"), (2, False, "fall_back")]
)  # fmt: skip
async def test_an_asynchronous_error_of_a_rank_is_never_healthy(
    code: int, serves: bool, verdict: str
) -> None:
    document = json.loads(report([7] * 8))
    document["communicators"][0]["ranks"][3]["status"]["async_error"] = code
    reading = await ask(ras_talk(json.dumps(document)))
    changes = (
        {} if serves else {"engine": make.engine(tokens=(5, 5)), "completion": make.completion("timeout")}
    )
    judged = judge(make.healthy(ras=reading, **changes))
    assert judged.verdict == verdict
    assert verdict == "healthy" or (judged.cause == "nccl_hang" and "rank 3" in judged.summary)


async def test_a_rank_that_does_not_answer_is_listed_with_its_process() -> None:
    missing = (await ask(ras_talk(report([7] * 8, missing=7)))).polls[1].communicators[0].missing
    assert [(row.rank, row.pid, row.unresponsive) for row in missing] == [(7, 507, True)]


async def test_the_text_protocol_of_an_older_nccl_is_parsed() -> None:
    poll = (await ask(ras_talk(TEXT, json_format=False))).polls[0]
    assert (poll.outcome, poll.protocol, poll.nccl_version) == ("ok", "text", "2.27.5")
    communicator = poll.communicators[0]
    assert communicator.mismatch and communicator.missing_count == 1
    assert [(row.rank, row.pid) for row in communicator.missing] == [(2, 1468032)]
    assert communicator.ranks[-1].model_dump() == {
        "rank": 3,
        "pid": 1468033,
        "counts": {"collective": 6},
        "async_error": 0,
    }


async def _says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def _greets_and_falls_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SERVER PROTOCOL 2\nOK\nOK\n")
    await asyncio.sleep(60)


async def _speaks_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def _hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    return


async def _endless_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def _endless_report(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SERVER PROTOCOL 2\nOK\nOK\n")
    while True:
        writer.write(b"[" * 65536)
        await writer.drain()


@pytest.mark.parametrize(
    ("talk", "outcome"),
    [
        (_says_nothing, "silent"),
        (_greets_and_falls_silent, "silent"),
        (_hangs_up, "silent"),
        (_speaks_http, "garbage"),
        (_endless_line, "garbage"),
        (_endless_report, "garbage"),
        (ras_talk("{ truncated"), "garbage"),
        (ras_talk("[" * 5000), "garbage"),
        (ras_talk('{"communicators": [{"ranks": 3}]}'), "garbage"),
        (ras_talk("<html>", json_format=False), "garbage"),
    ],
)
async def test_anything_but_a_report_is_silent_or_garbage_within_the_deadline(
    talk: Talk, outcome: str
) -> None:
    began = time.monotonic()
    reading = await ask(talk, timeout_s=1.0 if talk is _endless_report else 0.4)
    assert [poll.outcome for poll in reading.polls] == [outcome, outcome], reading.polls[0].detail
    assert time.monotonic() - began < 4


async def test_an_empty_address_asks_nobody() -> None:
    with pytest.raises(CollectorSkipped, match="no RAS address is configured"):
        await collect_ras(source_of("", timeout_s=0.4))


async def test_a_closed_port_is_refused_and_a_bad_address_is_reported() -> None:
    async with ras_server(_hangs_up) as address:
        pass
    reading = await collect_ras(source_of(address, timeout_s=0.3))
    assert {poll.outcome for poll in reading.polls} == {"refused"}
    with pytest.raises(CollectorFailed, match="HOST:PORT"):
        await collect_ras(source_of("localhost", timeout_s=0.3))


@given(st.text(max_size=400))
def test_the_parsers_handle_any_text(text: str) -> None:
    assert parse_json_answer(text, at_s=0).outcome in ("ok", "garbage")
    assert parse_text_answer(text, at_s=0).outcome in ("ok", "garbage")
    assert parse_text_answer("NCCL version 2.27.5\n" + text, at_s=0).outcome == "ok"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {"communicators": st.lists(st.fixed_dictionaries({"hash": JSON, "ranks": JSON, "size": JSON}))}
    )
)
def test_the_json_parser_handles_any_shape(document: object) -> None:
    assert parse_json_answer(json.dumps(document), at_s=0).outcome in ("ok", "garbage")


@given(st.lists(st.sampled_from(TEXT.splitlines()), max_size=40))
def test_the_text_parser_handles_shuffled_reports(lines: list[str]) -> None:
    parse_text_answer("\n".join(["NCCL version 2.27.5", *lines]), at_s=0)
