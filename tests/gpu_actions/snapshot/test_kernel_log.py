"""Kernel logs as files, in the forms that hosts write them, and this machine's own."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.collectors.kernel_log import (
    KMSG,
    KernelLogReading,
    boot_time,
    collect_kernel_log,
    journal_lines,
    lost_records,
    read_lines,
)
from gpu_actions.snapshot.kernel_log_lines import event_of, normal_pci, time_of
from gpu_actions.triage.judge import judge
from tests.gpu_actions.triage import builders as make

LOGS = Path(__file__).resolve().parents[2] / "data" / "kernel_logs"
NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


async def read(path: Path, *, since: datetime | None = None, max_bytes: int = 4 << 20) -> KernelLogReading:
    return await collect_kernel_log(path, since=since, since_s=900, max_bytes=max_bytes, expect_gpus=8)


async def test_a_gpu_off_the_bus_is_found_in_dmesg_with_and_without_its_xid() -> None:
    events = (await read(LOGS / "xid79_dmesg.log")).events
    assert [(event.kind, event.code, event.pci) for event in events] == [
        ("xid", 79, "0000:3b:00"),
        ("off_bus", None, "0000:3b:00"),
        ("xid", 154, "0000:3b:00"),
    ]


async def test_links_and_switches_are_distinguished_by_their_text() -> None:
    log = await read(LOGS / "nvlink_syslog.log")
    assert [(event.kind, event.code) for event in log.events] == [
        ("xid", 145),
        ("sxid", 20034),
        ("sxid", 11012),
    ]
    ids = {finding.id for finding in judge(make.healthy(kernel_log=log)).findings}
    assert {"kernel_log.nvlink", "kernel_log.nvlink_fatal"} <= ids


async def test_application_faults_never_call_for_a_fallback() -> None:
    log = await read(LOGS / "application_iso.log")
    assert [event.code for event in log.events] == [31, 13, 43, 45]
    verdict = judge(make.healthy(kernel_log=log))
    assert (verdict.verdict, verdict.cause) == ("watch", "application_fault")


async def test_messages_older_than_since_do_not_count() -> None:
    log = await read(LOGS / "application_iso.log", since=datetime(2026, 11, 23, 9, 59, 2, tzinfo=UTC))
    assert [event.code for event in log.events] == [43, 45]


async def test_a_line_without_a_time_always_counts(tmp_path: Path) -> None:
    path = tmp_path / "k.log"
    path.write_text("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.\n")
    assert len((await read(path, since=NOW + timedelta(days=365))).events) == 1


async def test_only_the_end_of_a_long_log_is_read_and_marked_truncated(tmp_path: Path) -> None:
    path = tmp_path / "k.log"
    path.write_text(
        "NVRM: Xid (PCI:0000:3b:00): 79, x\n" + "noise\n" * 5000 + "NVRM: Xid (PCI:0000:3b:00): 31, y\n"
    )
    log = await read(path, max_bytes=4096)
    assert log.truncated and [event.code for event in log.events] == [31]


async def test_a_flood_of_events_is_capped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "k.log"
    path.write_text("NVRM: Xid (PCI:0000:3b:00): 31, y\n" * 1000)
    log = await read(path)
    assert (len(log.events), log.dropped_events) == (200, 800)


@pytest.mark.parametrize("position", ["first", "last"])
async def test_a_storm_of_harmless_errors_hides_no_other(tmp_path: Path, position: str) -> None:
    path = tmp_path / "k.log"
    storm = "NVRM: Xid (PCI:0000:3b:00): 13, Graphics Exception\n" * 5000
    bad = "NVRM: Xid (PCI:0000:3b:00): 95, Uncontained ECC error\n"
    path.write_text(bad + storm if position == "first" else storm + bad)
    log = await read(path)
    verdict = judge(make.healthy(kernel_log=log))
    assert (verdict.verdict, verdict.cause) == ("fall_back", "gpu_reset_required")
    storms = next(row for row in verdict.findings if row.id == "kernel_log.application")
    assert storms.evidence["times"] == 5000 and "5000 times" in storms.summary


XID_95 = "NVRM: Xid (PCI:0000:29:00): 95, Uncontained ECC error"


@pytest.mark.parametrize(
    ("marker", "is_over"),
    [
        ("Linux version 6.8.0-45-generic (buildd@lcy02)", True),
        ("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.65.06", True),
        ("nvidia-smi: GPU 00000000:29:00.0 was successfully reset.", True),
        ("nvidia 0000:29:00.0: reset done", True),
        ("NVRM: Xid (PCI:0000:29:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)", True),
        ("nvidia 0000:39:00.0: reset done", False),
        ("nvidia 0000:29:00.0: resetting", False),
    ],
)  # fmt: skip
async def test_an_error_before_a_reset_of_its_gpu_a_driver_load_or_a_boot_is_history(
    tmp_path: Path, marker: str, is_over: bool
) -> None:
    path = tmp_path / "k.log"
    path.write_text(f"{XID_95}\n{marker}\n")
    verdict = judge(make.healthy(kernel_log=await read(path)))
    assert verdict.verdict == ("healthy" if is_over else "fall_back")
    assert any(finding.id == "kernel_log.history" for finding in verdict.findings) is is_over
    path.write_text(f"{marker}\n{XID_95}\n")
    assert judge(make.healthy(kernel_log=await read(path))).verdict == "fall_back"


def test_messages_lost_from_the_kernels_ring_are_unknown() -> None:
    booted = NOW - timedelta(hours=1)
    since = NOW - timedelta(minutes=15)

    def record(number: int, at: datetime) -> str:
        return f"6,{number},{(at - booted) // timedelta(microseconds=1)},-;noise"

    early, late = since - timedelta(minutes=1), since + timedelta(minutes=1)
    assert lost_records([record(7, early), record(8, late)], since=since, booted=booted) == ""
    assert "3 kernel messages" in lost_records(
        [record(7, early), record(11, late)], since=since, booted=booted
    )
    assert lost_records([record(7, early), record(11, early)], since=since, booted=booted) == ""
    assert "only reaches back" in lost_records([record(7, late)], since=since, booted=booted)
    assert lost_records([record(0, late)], since=since, booted=booted) == ""
    log = read_lines(
        [record(7, late)], source="k", since=since, now=NOW, booted=booted, lost="3 were overwritten"
    )
    verdict = judge(make.healthy(kernel_log=log))
    assert verdict.verdict == "unknown" and not [row for row in verdict.findings if row.id == "kernel_log.ok"]


async def test_a_long_log_whose_end_does_not_reach_back_far_enough_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "k.log"
    path.write_text("2026-11-23T09:59:01+00:00 h kernel: noise\n" * 500)
    log = await read(path, since=NOW - timedelta(minutes=15), max_bytes=4096)
    assert judge(make.healthy(kernel_log=log)).verdict == "unknown"
    assert judge(make.healthy(kernel_log=await read(path, since=NOW, max_bytes=4096))).verdict == "healthy"


JOURNAL = """#!/bin/sh
case "$*" in
  *--lines*) cat "$0.last" ;;
  *) cat "$0.since" ;;
esac
exit 0
"""


@pytest.mark.parametrize(
    ("since", "last", "lines"),
    [("", "", None), ("", "NVRM: quiet", 1), ("NVRM: Xid (PCI:0000:3b:00): 79, x", "NVRM: x", 1)],
)
async def test_a_journal_that_shows_nothing_at_all_is_unread(
    since: str, last: str, lines: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "journalctl"
    program.write_text(JOURNAL)
    program.chmod(0o755)
    now_us = int(datetime.now(UTC).timestamp() * 1e6)
    for name, message, at in (("since", since, now_us), ("last", last, now_us - 10**10)):
        text = json.dumps({"__REALTIME_TIMESTAMP": str(at), "MESSAGE": message}) + "\n" if message else ""
        (tmp_path / f"journalctl.{name}").write_text(text)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("gpu_actions.snapshot.collectors.kernel_log.read_kmsg", list)
    reading = collect_kernel_log(None, since=None, since_s=900, max_bytes=4096, expect_gpus=8)
    if lines is None:
        with pytest.raises(CollectorFailed, match="no kernel message"):
            await reading
    else:
        log = await reading
        assert (log.lines_read, len(log.events)) == (lines, 1 if since else 0)


async def test_the_oom_killers_victims_are_found(tmp_path: Path) -> None:
    path = tmp_path / "k.log"
    path.write_text(
        "Out of memory: Killed process 4711 (VLLM::Worker_TP) total-vm:1kB, anon-rss:1kB\n"
        "Memory cgroup out of memory: Killed process 4712 (python3) total-vm:1kB\n"
    )
    assert [(kill.pid, kill.name) for kill in (await read(path)).oom_kills] == [
        (4711, "VLLM::Worker_TP"),
        (4712, "python3"),
    ]


async def test_a_missing_file_fails_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(CollectorFailed, match=r"gone\.log"):
        await read(tmp_path / "gone.log")


async def test_a_cpu_host_is_skipped_unless_a_file_is_configured(tmp_path: Path) -> None:
    with pytest.raises(CollectorSkipped):
        await collect_kernel_log(None, since=None, since_s=900, max_bytes=4096, expect_gpus=0)
    (tmp_path / "k").touch()
    log = await collect_kernel_log(tmp_path / "k", since=None, since_s=900, max_bytes=4096, expect_gpus=0)
    assert log.lines_read == 0


@pytest.mark.skipif(not os.access(KMSG, os.R_OK), reason="this user may not read /dev/kmsg")
async def test_the_ring_buffer_of_the_kernel_is_read_without_blocking() -> None:
    log = await collect_kernel_log(
        None, since=boot_time() - timedelta(days=1), since_s=900, max_bytes=4096, expect_gpus=8
    )
    assert log.source == str(KMSG) and log.lines_read > 10


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[  100.500000] x", NOW - timedelta(hours=1) + timedelta(seconds=100.5)),
        ("6,1234,100500000,-;x", NOW - timedelta(hours=1) + timedelta(seconds=100.5)),
        ("2026-11-23T09:59:01.12+00:00 h kernel: x", datetime(2026, 11, 23, 9, 59, 1, tzinfo=UTC)),
        ("2026-11-23T10:59:01+0100 h kernel: x", datetime(2026, 11, 23, 9, 59, 1, tzinfo=UTC)),
        ("no time at all", None),
        ("Feb 30 10:00:00 h kernel: x", None),
    ],
)
def test_times_are_parsed_in_every_form(line: str, expected: datetime | None) -> None:
    assert time_of(line, booted=NOW - timedelta(hours=1), now=NOW) == expected


def test_a_syslog_time_in_the_future_is_from_last_year() -> None:
    at = time_of("Dec 31 23:59:00 h kernel: x", booted=NOW, now=NOW)
    assert at is not None and at.year == 2025


def test_journal_records_become_lines_and_broken_ones_are_dropped() -> None:
    text = '{"__REALTIME_TIMESTAMP":"1763892000000000","MESSAGE":"NVRM: Xid (PCI:0000:3b:00): 79, x"}\n{"MESSAGE":1}\nnoise\n'
    lines = journal_lines(text)
    assert len(lines) == 1 and "Xid" in lines[0]
    log = read_lines(lines, source="j", since=None, now=NOW, booted=NOW)
    assert log.events[0].code == 79 and log.events[0].at is not None


@pytest.mark.parametrize(
    ("raw", "normal"), [("PCI", "pci"), ("00000000:3B:00.0", "0000:3b:00"), ("3b:00", "0000:3b:00")]
)
def test_bus_ids_are_compared_in_one_form(raw: str, normal: str) -> None:
    assert normal_pci(raw) == normal


@given(st.text(max_size=300), st.text(max_size=100))
def test_the_parser_handles_any_line(before: str, after: str) -> None:
    line = f"{before}NVRM: Xid (PCI:0000:3b:00): {after}"
    event_of(line)
    time_of(before, booted=NOW, now=NOW)
    read_lines([line, before, after], source="s", since=NOW, now=NOW, booted=NOW)


@pytest.mark.parametrize(
    ("line", "kind", "code", "pci"),
    [
        ("NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', GPU has fallen off the bus.", "xid", 79, "0000:3b:00"),
        ("NVRM: Xid (0000:3b:00): 31, Ch 00000010, engmask 00000101", "xid", 31, "0000:3b:00"),
        ("NVRM: Xid(PCI:0000:3b:00): 46 , pid=12", "xid", 46, "0000:3b:00"),
        ("NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 94, Contained", "xid", 94, "0000:3b:00"),
        ("NVRM: Xid (PCI:0008:06:00.0): 149, NETIR_LINK_EVT Fatal", "xid", 149, "0008:06:00"),
        ("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up", "sxid", 20034, "0000:c1:00"),
        ("NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.", "off_bus", None, "0000:3b:00"),
        ("NVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x22:0x56:667)", "init_failed", None, "0000:3b:00"),
        ("NVRM: GPU 0000:3b:00.0: rm_init_adapter failed, device minor number 3", "init_failed", None, "0000:3b:00"),
        ("systemd: Started NVIDIA Persistence Daemon, Xid 79 in its name", None, None, ""),
    ],
)  # fmt: skip
def test_an_error_is_found_in_every_form_that_drivers_write(
    line: str, kind: str | None, code: int | None, pci: str
) -> None:
    event = event_of(f"<4>[  100.5] {line}")
    assert (event and event.kind, event and event.code, event.pci if event else "") == (kind, code, pci)
