"""The shell entry: exit codes, output, and one clear line for every misuse."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_actions.models import Verdict
from gpu_actions.snapshot.collectors.fabric_manager import FabricManagerReading
from gpu_actions.snapshot.model import load_snapshot, save_snapshot
from gpu_actions.triage.cli import main, parse_duration
from gpu_actions.triage.judge import judge
from tests.gpu_actions.triage import builders as make

DOWN = FabricManagerReading(unit="fm", load_state="loaded", active_state="failed")
SNAPSHOTS = {
    "healthy": (make.healthy(), 0),
    "watch": (make.healthy(fabric_manager=DOWN), 1),
    "fall_back": (make.healthy(nvml=make.with_gpu(0, error="gpu_is_lost")), 3),
    "unknown": (make.healthy(kernel_log=None), 4),
}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_a_recorded_file_yields_its_verdict_exit_code_and_json(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot, code = SNAPSHOTS[name]
    path = save_snapshot(snapshot, tmp_path / "s.json")
    assert main(["--snapshot", str(path), "--json"]) == code
    out, err = capsys.readouterr()
    assert Verdict.model_validate_json(out) == judge(load_snapshot(path)), (
        "stdout holds the verdict and nothing else"
    )
    assert json.loads(out)["verdict"] == name and err == ""


def test_the_first_line_is_verdict_and_cause_and_the_second_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_snapshot(SNAPSHOTS["fall_back"][0], tmp_path / "s.json")
    main(["--snapshot", str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "FALL BACK: gpu_lost"
    assert lines[1].startswith("Fall back to another GPU")
    assert any("fall back to GPU 1 (GPU-1)" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--deeep"], "--deeep"),
        (["--since", "soon"], "15m"),
        (["--since", "0s"], "--since"),
        (["--ras", "localhost"], "HOST:PORT"),
        (["--engine-url", "localhost:8101"], "http://"),
        (["--expect-gpus", "-1"], "--expect-gpus"),
        (["--expect-gpus", "many"], "--expect-gpus"),
        (["--window-s", "0"], "--window-s"),
        (["--kernel-log", "/no/such/file"], "--kernel-log"),
        (["--snapshot", "/no/such/file"], "no such file"),
        (["--baseline", "/no/such/file"], "--baseline"),
        (["--accept-unknown", "gpu.everything"], "triage-rules.md"),
        (["--tier", "middle"], "--tier"),
    ],
)
def test_wrong_usage_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.splitlines()) == 1


def test_help_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--expect-links" in capsys.readouterr().out


def test_a_recorded_snapshot_is_judged_the_same_again(
    fake_nvml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_nvml("gpus=8", "gpu.2.link.5.active=0")
    log = tmp_path / "kernel.log"
    log.touch()
    record = tmp_path / "r.json"
    options = ["--json", "--expect-gpus", "8", "--window-s", "0.2", "--kernel-log", str(log)]
    assert main([*options, "--record", str(record)]) == 3
    first = capsys.readouterr().out
    assert main(["--json", "--snapshot", str(record)]) == 3
    assert capsys.readouterr().out == first


def test_a_record_that_cannot_be_written_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    code = main(["--expect-gpus", "0", "--window-s", "0.2", "--record", str(tmp_path / "file" / "r.json")])
    assert code == 2 and "--record" in capsys.readouterr().err


def test_a_baseline_file_is_used_and_a_broken_one_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_snapshot(make.healthy(), tmp_path / "s.json")
    baseline = tmp_path / "b.json"
    baseline.write_text('{"completion_ms": 10}')
    assert main(["--snapshot", str(path), "--baseline", str(baseline)]) == 1
    baseline.write_text('{"completion_ms": -1}')
    capsys.readouterr()
    assert main(["--snapshot", str(path), "--baseline", str(baseline)]) == 2
    assert "completion_ms" in capsys.readouterr().err


def test_triage_imports_neither_torch_nor_nvml_nor_slack() -> None:
    code = (
        "import sys; from gpu_actions.triage.cli import main;"
        "code = main(['--expect-gpus', '0', '--window-s', '0.2', '--json']);"
        "assert not {'torch', 'pynvml', 'slack_bolt', 'bot'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4, done.stderr  # nothing is configured, so nothing was checked
    assert json.loads(done.stdout)["verdict"] == "unknown"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86400)]
)
def test_durations_are_parsed(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds
