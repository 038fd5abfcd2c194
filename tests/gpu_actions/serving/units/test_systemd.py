"""The systemd unit without a systemd: its files through `systemd-analyze verify`, its commands against a recorded interface.

`test_unit_systemd_real.py` drives a real manager where one can be had; what is here runs everywhere.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.serving.interfaces import UnitError
from gpu_actions.serving.units.systemd import VERBS, SystemdService, SystemdUnit
from gpu_actions.serving.units.systemd_files import (
    freeze_drop_in,
    freeze_reason,
    parse_timespan_s,
    quote_environment,
    scope_drop_in,
    scope_environment_file,
    scope_variables,
)
from gpu_actions.system.processes import run_process
from tests.gpu_actions.serving.units import fake_systemctl

NASTY = {
    "PLAIN": "GPU-1",
    "SPACES": "a b",
    "QUOTES": "say \"hi\" 'there'",
    "DOLLAR": "$HOME `id` %h",
    "BACK": "a\\b",
}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the recorded systemctl first on PATH and return its folder."""
    folder = tmp_path / "systemd"
    (folder / "bin").mkdir(parents=True)
    for name in ("systemctl", "journalctl"):
        shim = folder / "bin" / name
        body = f'exec {sys.executable} {fake_systemctl.__file__} "$@"' if name == "systemctl" else 'echo "$@"'
        shim.write_text(
            f"#!/bin/sh\nexport FAKE_SYSTEMD_DIR={folder} FAKE_FAILS=$(cat {folder}/fails 2>/dev/null)\n{body}\n"
        )
        shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    return folder


def service(recorded: Path, **settings: object) -> SystemdService:
    config = SystemdUnit.model_validate({"name": "vllm-tp.service", **settings})
    return SystemdService("tp", config, drop_in_root=recorded / "drop-ins")


def calls(recorded: Path) -> list[str]:
    """Return all commands except those that only read."""
    return [line for line in (recorded / "calls").read_text().splitlines() if "show" not in line]


def given_state(recorded: Path, **state: object) -> None:
    (recorded / "state.json").write_text(json.dumps(state))


async def test_recorded_start_and_stop_use_only_allowed_verbs(recorded: Path) -> None:
    unit = service(recorded)
    await unit.start()
    state = await unit.state()
    assert state.active
    assert state.main_pid is not None
    report = await unit.stop()
    assert report.was_active
    assert not report.killed
    assert calls(recorded) == ["start --no-block vllm-tp.service", "stop --no-block vllm-tp.service"]
    with pytest.raises(ValueError, match="not allowed"):
        unit._argv("enable", "vllm-tp.service")
    assert {"enable", "disable", "edit", "set-property", "reboot"}.isdisjoint(VERBS)


async def test_recorded_user_manager_is_called_with_user(recorded: Path) -> None:
    await service(recorded, user=True).start()
    assert calls(recorded) == ["--user start --no-block vllm-tp.service"]


async def test_recorded_stop_kills_the_group_after_the_grace(recorded: Path) -> None:
    given_state(recorded, stubborn=True, ActiveState="active", SubState="running", MainPID="1")
    report = await service(recorded).stop(grace_s=0.3)
    assert report.killed
    assert calls(recorded) == [
        "stop --no-block vllm-tp.service",
        "kill --kill-who=all --signal=SIGKILL vllm-tp.service",
    ]


async def test_recorded_short_stop_timeout_logs_a_warning(
    recorded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given_state(recorded, ActiveState="active", MainPID="1", TimeoutStopUSec="20s")
    await service(recorded).stop(grace_s=60)
    assert "TimeoutStopSec" in caplog.text


async def test_recorded_freeze_writes_the_assertion_masks_and_is_read_back(recorded: Path) -> None:
    unit = service(recorded)
    await unit.freeze("NVLink 3 is down")
    state = await unit.state()
    assert (state.frozen, state.frozen_reason) == (True, "NVLink 3 is down")
    with pytest.raises(UnitError, match="NVLink 3 is down"):
        await unit.start()
    await unit.unfreeze()
    assert not (await unit.state()).frozen
    assert calls(recorded) == [
        "daemon-reload",
        "mask --runtime vllm-tp.service",
        "unmask --runtime vllm-tp.service",
        "daemon-reload",
    ]


async def test_recorded_freeze_of_a_running_unit_does_not_mask_it(recorded: Path) -> None:
    unit = service(recorded)
    await unit.start()
    await unit.freeze("look first")
    assert (await unit.state()).active
    assert "mask --runtime vllm-tp.service" not in calls(recorded)


async def test_recorded_mask_of_another_administrator_is_reported_and_not_removed(recorded: Path) -> None:
    given_state(recorded, LoadState="masked", UnitFileState="masked")
    unit = service(recorded)
    assert (await unit.state()).frozen_reason == "masked in systemd, not by gpu-oncall"
    with pytest.raises(UnitError, match="masked permanently"):
        await unit.unfreeze()


async def test_recorded_failed_unit_is_reset_before_it_is_started(recorded: Path) -> None:
    given_state(recorded, ActiveState="failed", SubState="failed", Result="start-limit-hit")
    await service(recorded).start()
    assert calls(recorded) == ["reset-failed vllm-tp.service", "start --no-block vllm-tp.service"]


async def test_recorded_start_that_fails_is_an_error_with_the_result(recorded: Path) -> None:
    (recorded / "fails").write_text("1")
    with pytest.raises(UnitError, match=r"failed/failed \(exit-code\); read 'journalctl --unit=vllm-tp"):
        await service(recorded).start()


async def test_recorded_missing_unit_is_named(recorded: Path) -> None:
    given_state(recorded, LoadState="not-found")
    with pytest.raises(UnitError, match=r"no usable unit vllm-tp\.service .*tiers\.tp\.unit\.name"):
        await service(recorded).state()


async def test_recorded_scope_is_written_reloaded_and_cleared(recorded: Path) -> None:
    unit = service(recorded)
    await unit.set_scope(NASTY, unset=["NCCL_P2P_DISABLE", "PLAIN"])
    assert await unit.scope() == NASTY
    text = (unit.drop_ins / "90-gpu-oncall.conf").read_text()
    assert "UnsetEnvironment=NCCL_P2P_DISABLE\n" in text
    assert (unit.drop_ins / "90-gpu-oncall.env").stat().st_mode & 0o777 == 0o600
    await unit.set_scope({})
    assert await unit.scope() == {}
    assert list(unit.drop_ins.iterdir()) == []
    assert calls(recorded) == ["daemon-reload"] * 2


async def test_a_host_without_systemctl_is_an_error_that_says_so(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnitError, match="does not run systemd"):
        await service(recorded).state()


async def test_the_log_is_read_from_the_journal(recorded: Path) -> None:
    words = await service(recorded).log_tail(6400)
    assert words.strip() == "--unit=vllm-tp.service --no-pager --lines=100 --output=short-iso"


def test_the_driver_is_chosen_by_the_settings(tmp_path: Path) -> None:
    unit = SystemdUnit(name="vllm-tp.service").build("tp", state_dir=tmp_path)
    assert unit.describe_start() == "systemctl --no-pager --no-ask-password start vllm-tp.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("frozen", [False, True])
async def test_the_drop_ins_pass_systemd_analyze_verify(tmp_path: Path, frozen: bool) -> None:
    unit_file = tmp_path / "vllm-tp.service"
    unit_file.write_text("[Service]\nExecStart=/bin/true\nEnvironment=NCCL_P2P_DISABLE=1\n")
    drop_ins = tmp_path / "vllm-tp.service.d"
    drop_ins.mkdir()
    environment = drop_ins / "90-gpu-oncall.env"
    environment.write_text(scope_environment_file(NASTY))
    scope = scope_drop_in(NASTY, unset=["NCCL_P2P_DISABLE"], environment_file=environment)
    (drop_ins / "90-gpu-oncall.conf").write_text(scope)
    if frozen:
        (drop_ins / "95-gpu-oncall-freeze.conf").write_text(freeze_drop_in("because"))

    async def complaints() -> str:
        argv = ("systemd-analyze", "verify", "--recursive-errors=no", "--man=no", str(unit_file))
        return (await run_process(argv, timeout_s=30)).stderr

    assert str(drop_ins) not in await complaints()
    (drop_ins / "99-wrong.conf").write_text('[Service]\nEnvironment="A=unfinished\n')
    assert f"{drop_ins}/99-wrong.conf:2" in await complaints()  # the check itself sees a wrong line


@pytest.mark.parametrize(
    ("value", "word"),
    [("a b", '"K=a b"'), ('"', '"K=\\""'), ("\\", '"K=\\\\"'), ("50%", '"K=50%%"'), ("a\nb", '"K=a\\nb"')],
)
def test_values_are_quoted_for_environment_lines(value: str, word: str) -> None:
    assert quote_environment("K", value) == word


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "A\n[Service]", "A-B"])
def test_names_that_would_break_the_file_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="environment variable"):
        scope_drop_in({name: "x"}, unset=[], environment_file=Path("/x"))
    with pytest.raises(ValueError, match="environment variable"):
        scope_drop_in({}, unset=[name], environment_file=Path("/x"))


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True),
        st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0")),
    )
)
def test_a_scope_is_read_back_and_no_value_adds_a_line(variables: dict[str, str]) -> None:
    text = scope_drop_in(variables, unset=["Z9_UNSET"], environment_file=Path("/run/x.env"))
    assert scope_variables(text) == variables
    keys = [line.split("=", 1)[0] for line in text.split("\n") if line]
    extra = ["EnvironmentFile"] if variables else []
    assert keys[1:] == ["[Service]", *["Environment"] * len(variables), *extra, "UnsetEnvironment"]


def test_a_freeze_stores_its_reason_on_one_line() -> None:
    text = freeze_drop_in("first\n[Service]\nExecStart=/bin/evil")
    assert freeze_reason(text) == "first [Service] ExecStart=/bin/evil"
    assert "\nExecStart" not in text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1min 30s", 90),
        ("20s", 20),
        ("1h", 3600),
        ("500ms", 0.5),
        ("infinity", None),
        ("", None),
        ("1min 30.5s", 90.5),
    ],
)
def test_time_spans_of_systemd_are_parsed(text: str, seconds: float | None) -> None:
    assert parse_timespan_s(text) == seconds
