"""The `gpu-oncall` command in a shell: help, exit codes, one clear line per error, and break-glass runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bot.runs.process_lock import ProcessLock

HOST = """
[[hosts]]
name = "h1"
gpus = 0
ras_address = ""
[hosts.tiers.tp]
server = "tp"
engine = {{ url = "http://127.0.0.1:9", model = "m" }}
unit = {{ driver = "process", argv = ["sleep", "300"] }}
[hosts.tiers.fallback]
server = "fallback"
engine = {{ url = "http://127.0.0.1:9", model = "m" }}
unit = {{ driver = "process", argv = ["{program}"] }}
"""


def shell(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bot.cli", *words], capture_output=True, text=True, timeout=60, check=False, cwd=cwd
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gpu-oncall.toml"
    path.write_text(f'state_dir = "{tmp_path}/state"\n' + HOST.format(program="sleep"))
    return path


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    said = shell("--help")
    assert said.returncode == 0
    for command in ("up", "bot", "worker", "doctor", "manifest", "demo", "workspace", "triage", "loadtest",
                    "trace", "forensics", "fallback", "restore", "golden"):  # fmt: skip
        assert f" {command} " in said.stdout, command
    for command in ("up", "worker", "doctor", "fallback", "demo", "triage", "loadtest"):
        assert shell(command, "--help").returncode == 0, command


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fallback", "strat"), "'strat' is not a verb; use one of: plan, start"),
        (("fallback", "start"), "add --local"),
        (("fallback", "plan", "gpu"), "'gpu' is not an option: write name=value"),
        (("fallback", "plan", "gpuu=1"), "unknown option 'gpuu'; did you mean gpu?"),
        (("fallback", "plan", "--host", "h2"), "I know no host 'h2'; did you mean h1?"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_line(config: Path, words: tuple[str, ...], says: str) -> None:
    said = shell(*words, "--config", str(config))
    assert said.returncode == 2
    assert says in said.stderr
    assert "Traceback" not in said.stderr


def test_wrong_settings_exit_with_2_and_name_the_field(tmp_path: Path, config: Path) -> None:
    config.write_text(config.read_text().replace("gpus = 0", "gpus = 400"))
    for command in (("up",), ("doctor",), ("worker",), ("fallback", "plan")):
        said = shell(*command, "--config", str(config))
        assert said.returncode == 2
        assert "hosts.0.gpus" in said.stderr
        assert "400" in said.stderr


def test_a_missing_token_is_named_and_exits_with_1(config: Path) -> None:
    for command in ("up", "bot"):
        said = shell(command, "--config", str(config))
        assert said.returncode == 1
        assert "GPU_ONCALL_SLACK__BOT_TOKEN" in said.stderr


def test_break_glass_runs_forensics_without_slack_or_database(config: Path, tmp_path: Path) -> None:
    said = shell("forensics", "start", "--config", str(config), "--json")
    assert said.returncode == 0, said.stderr
    end = json.loads(said.stdout)
    assert end["ended"]["status"] == "succeeded"
    assert list((tmp_path / "state").rglob("evidence_*.tar.gz"))
    lines = [json.loads(line) for line in (tmp_path / "state" / "local.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "step", "end"]
    assert shell("forensics", "start", "--config", str(config)).returncode == 0
    said = shell("audit", "verify", "--config", str(config))
    assert (said.returncode, "intact: 6 lines of local.jsonl" in said.stdout) == (0, True), said.stdout


def test_break_glass_is_refused_beside_a_process_that_does_not_take_its_run(
    config: Path, tmp_path: Path
) -> None:
    lock = ProcessLock(tmp_path / "state")
    lock.take()
    try:
        short = (
            "import sys; import bot.cli.local as l; l.TAKEN_S = 0.5; from bot.cli.main import main; main()"
        )
        words = ("fallback", "--local", "--config", str(config))
        said = subprocess.run(
            [sys.executable, "-c", short, *words], capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        lock.release()
    assert said.returncode == 2, said
    assert "already runs on" in said.stderr
    assert "It did not take the run" in said.stderr


def test_a_plan_that_cannot_work_exits_with_1_and_its_reasons(config: Path) -> None:
    config.write_text(config.read_text().replace('argv = ["sleep"]', 'argv = ["/opt/none/vllm", "serve"]'))
    said = shell("fallback", "plan", "--config", str(config))
    assert said.returncode == 1
    assert said.stderr.startswith("refused: ")
    assert "its program /opt/none/vllm is not on this machine" in said.stderr


def test_doctor_names_what_is_wrong_and_how_to_fix_it(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace('argv = ["sleep"]', 'argv = ["/opt/none/vllm", "serve"]'))
    said = shell("doctor", "--config", str(config), "--json")
    assert said.returncode == 1
    checks = {check["name"]: check for check in json.loads(said.stdout)["checks"]}
    assert checks["h1.fallback.unit"]["status"] == "failed"
    assert "/opt/none/vllm is not on this machine" in checks["h1.fallback.unit"]["detail"]
    assert checks["slack.bot_token"]["status"] == "failed"
    assert checks["access.roles"]["status"] == "failed"
    assert checks["h1.tp.engine"]["status"] == "failed"
    assert checks["state_dir"]["status"] == "ok"
    text = shell("doctor", "--config", str(config)).stdout
    assert text.startswith("Not ready")
    assert "-> set access.roles.responder" in text
