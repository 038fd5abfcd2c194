"""`gpu-oncall golden` against a small real engine that can lie."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.cli.doctor.hosts import check_golden
from gpu_actions.host import build_host
from gpu_actions.serving.golden.record import save_golden
from tests.bot.cli.test_shell import HOST, shell
from tests.demo.engine.running import wait_for
from tests.gpu_actions.serving.golden.builders import golden_record
from tests.gpu_actions.site import TINY, host_config
from tests.ports import free_port


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    """Settings of a host whose tp tier is a running tiny engine; a file `wrong` makes it answer wrongly."""
    port, log = free_port(), tmp_path / "log"
    argv = [sys.executable, str(TINY), "--port", str(port), "--wrong-file", str(tmp_path / "wrong")]
    with log.open("wb") as file:
        engine = subprocess.Popen(argv, stderr=file)
    wait_for(lambda: "ready" in log.read_text())
    path = tmp_path / "gpu-oncall.toml"
    host = HOST.format(program="sleep").replace("127.0.0.1:9", f"127.0.0.1:{port}", 1)
    path.write_text(f'state_dir = "{tmp_path}/state"\n' + host)
    yield path
    engine.kill()
    engine.wait()


def test_a_tier_is_recorded_and_checked_and_a_lie_is_found(config: Path, tmp_path: Path) -> None:
    options = ("--config", str(config))
    said = shell("golden", "check", *options)
    assert said.returncode == 4
    assert "no golden prompts are recorded" in said.stdout
    assert "gpu-oncall golden record" in said.stdout

    said = shell("golden", "record", *options, "--repeats", "2", "--concurrency", "2")
    assert said.returncode == 0, said.stderr
    assert "recorded 4 golden prompts of h1 tp" in said.stdout
    assert "exact tokens and log-probabilities" in said.stdout
    kept = tmp_path / "state" / "baselines" / "golden-h1-tp.json"
    assert kept.stat().st_mode & 0o777 == 0o600

    said = shell("golden", "check", *options)
    assert (said.returncode, said.stdout[:8]) == (0, "matches:"), said.stdout

    (tmp_path / "wrong").touch()
    said = shell("golden", "check", *options)
    assert said.returncode == 1
    assert "golden prompt 1, token 1: the log-probability of ' tok' moved by 5.90 nats" in said.stdout
    assert "Restart the tier" in said.stdout

    kept.write_text("{")
    said = shell("golden", "check", *options)
    assert said.returncode == 4
    assert f"{kept}: is not JSON" in said.stdout


def test_an_engine_that_does_not_answer_leaves_no_file(config: Path, tmp_path: Path) -> None:
    said = shell("golden", "record", "--config", str(config), "--tier", "fallback")
    assert said.returncode == 1
    assert "nothing was recorded" in said.stderr
    assert "Traceback" not in said.stderr
    assert not (tmp_path / "state" / "baselines").exists()


def test_an_unknown_host_is_wrong_usage(config: Path) -> None:
    said = shell("golden", "check", "--config", str(config), "--host", "h2")
    assert said.returncode == 2
    assert "did you mean h1?" in said.stderr


async def test_doctor_warns_of_missing_foreign_and_damaged_records(tmp_path: Path) -> None:
    host = build_host(
        host_config(tmp_path), state_dir=tmp_path / "state", baselines_dir=tmp_path / "baselines"
    )
    path = host.golden_path("tp")
    assert path is not None

    async def found() -> tuple[str, str, str]:
        (check,) = await check_golden(host)
        return check.status, check.detail, check.fix

    status, detail, fix = await found()
    assert (status, "no golden prompts" in detail) == ("warning", True)
    assert fix == "on a good day: gpu-oncall golden record --host test"
    save_golden(golden_record(), path)
    assert (await found())[:2] == ("ok", "2 golden prompts, recorded on 2026-11-01")
    save_golden(golden_record(model="other"), path)
    assert (await found())[:2] == (
        "warning",
        "golden prompts are of vllm with other, the settings name vllm with m",
    )
    path.write_text("{")
    status, detail, _ = await found()
    assert (status, "is not JSON" in detail) == ("warning", True)
