"""The command line and the child process, as callers use them."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from time import monotonic
from unittest import mock

import psutil
import pytest
from PIL import Image

from gpu_actions.loadtest.child import run_in_child
from gpu_actions.loadtest.cli import main
from gpu_actions.loadtest.result import LoadProgress, LoadTestResult, RunVerdict, schema_text
from gpu_actions.loadtest.target import LoadTestRefused
from tests.gpu_actions.loadtest.conftest import StartServer, Truth

REPOSITORY = Path(__file__).parents[3]


def shell(*argv: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ, env or {}), redirect_stdout(out), redirect_stderr(err):
        code = main(list(argv))
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def shell_process(*argv: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gpu_actions.loadtest", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def load_flags(server: Truth, *more: str) -> list[str]:
    return [
        "--url",
        server.url,
        "--model",
        "truth",
        "--duration",
        "1",
        "--target-qps",
        "20",
        "--warmup-s",
        "0",
        *more,
    ]


def test_the_runbooks_command_runs_and_writes_all_its_files(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(ttft_ms=10, itl_ms=2)
    ended = shell_process(
        *load_flags(server, "--max-new-tokens", "4", "--prompt-len-min", "32", "--prompt-len-max", "64"),
        "--allow-smaller-world", "--output-json", str(tmp_path / "deep" / "load_test.json"),
        "--report", str(tmp_path / "report"),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("PASSED: load test, ")
    result = LoadTestResult.model_validate_json((tmp_path / "deep" / "load_test.json").read_bytes())
    assert result.workload.prompt_unit == "bytes", "found out from the engine"
    assert (tmp_path / "report" / "summary.txt").read_text() == ended.stdout
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg") >= 4
    assert not any(outside in page for outside in ("<script", "<link", "src=", "url("))
    with Image.open(tmp_path / "report" / "report.png") as picture:
        assert picture.size == (840, 960), "portrait, for a phone"


def test_under_torchrun_only_rank_0_makes_load(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(ttft_ms=5, itl_ms=1)
    world = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    first = shell(*load_flags(server), env=world)
    seen = len(server.logged())
    second = shell(*load_flags(server), env={**world, "RANK": "1"})
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert seen > 5
    assert len(server.logged()) == seen


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--target-qps", "0"], "target_qps = 0.0"),
        (["--prompt-len-min", "90"], "prompt_len_min = 90: is above prompt_len_max = 64"),
        (["--target-qps", "1e12"], "target_qps = 1000000000000.0"),
        (["--model", "nope"], "model = 'nope': is not served"),
        (["--no-such-flag"], "unrecognized arguments"),
        (["--url", "nonsense"], "url = 'nonsense'"),
        (["--url", "http://no-such-host.invalid"], "'no-such-host.invalid' is not known"),
        (["--arrival", "replay", "--trace-file", "/no/such/file"], "trace_file = /no/such/file"),
    ],
)
def test_wrong_usage_ends_with_one_clear_line_and_exit_code_2(
    start_server: StartServer, argv: list[str], words: str
) -> None:
    ended = shell(*load_flags(start_server()), *argv)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_run_over_its_limits_ends_with_exit_code_1(start_server: StartServer) -> None:
    for _ in range(10):  # a busy machine makes a run void (3), which is right but not tested here
        ended = shell(*load_flags(start_server(ttft_ms=50), "--slo-ttft-ms", "20"))
        if ended.returncode != 3:
            break
    assert ended.returncode == 1
    assert "p99 TTFT" in ended.stdout


def test_an_interrupt_drains_and_keeps_the_partial_result(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(ttft_ms=30, itl_ms=2)
    argv = [
        sys.executable,
        "-m",
        "gpu_actions.loadtest",
        *load_flags(server, "--duration", "60"),
        "--report",
        str(tmp_path),
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "sent" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "PARTIAL" in out
    result = LoadTestResult.model_validate_json((tmp_path / "load_test.json").read_bytes())
    assert result.partial
    assert result.requests.ok == result.requests.sent > 0


def test_a_baseline_is_recorded_listed_shown_set_and_compared(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(ttft_ms=20, itl_ms=2)
    load = load_flags(server, "--target-qps", "60", "--arrival", "constant", "--no-energy")
    recorded = shell(
        "baseline", "record", "healthy", *load, "--report", str(tmp_path / "runs"), "--store", str(tmp_path)
    )
    assert recorded.returncode == 0, recorded.stderr
    assert "from 3 runs" in recorded.stdout
    listed = shell("baseline", "list", "--store", str(tmp_path)).stdout
    assert "* healthy: truth at 60 QPS" in listed
    assert "published-8xb200: unverified reference" in listed
    assert (
        json.loads(shell("baseline", "show", "healthy", "--store", str(tmp_path)).stdout)["name"] == "healthy"
    )
    assert shell("baseline", "set", "healthy", "--store", str(tmp_path)).returncode == 0
    run = next((tmp_path / "runs").iterdir())
    same = shell("compare", str(run), "healthy", "--store", str(tmp_path))
    assert same.returncode == 0, same.stdout
    refused = shell("compare", str(run), "published-8xb200", "--store", str(tmp_path))
    assert refused.returncode == 3
    assert "never the judge" in refused.stdout


def test_the_orchestrated_test_has_a_new_folder_for_each_run_and_a_verdict(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(ttft_ms=10, itl_ms=2)
    flags = [
        "--url",
        server.url,
        "--model",
        "truth",
        "--warmup-s",
        "0",
        "--report",
        str(tmp_path),
        "--store",
        str(tmp_path / "b"),
    ]
    ended = [shell("orchestrate", "1", "20", "postmortem validation", *flags) for _ in range(2)]
    assert [one.returncode for one in ended] == [0, 0], ended[0].stderr
    folders = sorted(tmp_path.glob("postmortem_validation-*"))
    assert len(folders) == 2, "a rerun never overwrites"
    assert all((folder / "load_test.json").is_file() for folder in folders)
    assert "no baseline for this host and workload" in ended[0].stdout


async def test_a_child_run_shows_progress_and_returns_its_result(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(ttft_ms=20, itl_ms=2)
    seen: list[LoadProgress] = []
    result = await run_in_child(server.spec(duration_s=3), tmp_path / "out", seen.append)
    assert result.verdict is RunVerdict.PASSED, result.reasons
    assert len(seen) >= 3
    assert seen[-1].done == result.requests.ok + result.warmup.ok
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "load_test.json",
        "report.html",
        "report.png",
        "summary.txt",
    }


async def test_a_cancelled_child_run_drains_keeps_its_partial_result_and_leaves_no_process(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(ttft_ms=20, itl_ms=2)
    running = asyncio.Event()
    task = asyncio.create_task(
        run_in_child(server.spec(duration_s=60, processes=2), tmp_path, lambda _: running.set())
    )
    await asyncio.wait_for(running.wait(), 20)
    children = psutil.Process().children(recursive=True)
    began = monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert monotonic() - began < 15
    assert LoadTestResult.model_validate_json((tmp_path / "load_test.json").read_bytes()).partial
    left = [
        child
        for child in children
        if child.is_running() and "gpu_actions.loadtest" in " ".join(child.cmdline())
    ]
    assert left == []


async def test_a_stopped_child_run_returns_its_partial_result(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(ttft_ms=20, itl_ms=2)
    stop = asyncio.Event()
    result = await run_in_child(server.spec(duration_s=60), tmp_path, lambda _: stop.set(), stop=stop)
    assert result.partial
    assert result.verdict is RunVerdict.VOID


async def test_a_child_run_refuses_a_wrong_model_and_never_shows_an_older_result(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(model="llama")
    (tmp_path / "load_test.json").write_text("{}")
    with pytest.raises(LoadTestRefused, match="is not served"):
        await run_in_child(server.spec(), tmp_path)
    assert not (tmp_path / "load_test.json").exists()


async def test_the_api_key_reaches_the_service_and_no_file(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(ttft_ms=5, key="hush-hush")
    with pytest.raises(LoadTestRefused, match="401"):
        await run_in_child(server.spec(duration_s=1), tmp_path / "without")
    result = await run_in_child(
        server.spec(duration_s=1, api_key="hush-hush", processes=2), tmp_path / "with"
    )
    assert result.verdict is RunVerdict.PASSED, result.reasons
    assert not any(b"hush-hush" in path.read_bytes() for path in (tmp_path / "with").iterdir())


def test_the_published_schema_is_up_to_date() -> None:
    published = (REPOSITORY / "docs" / "loadtest.schema.json").read_text()
    assert published == schema_text(), "write it again with: python -m bot.cli.generate_docs"
