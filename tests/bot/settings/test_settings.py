"""Valid settings load; an invalid one is named with its field, value, source and what is allowed."""

from pathlib import Path

import pytest

from bot.settings.load import SettingsError, load_settings

EXAMPLE = Path(__file__).parents[3] / "deploy" / "gpu-oncall.example.toml"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Writer":
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPU_ONCALL_CONFIG", raising=False)
    return Writer(tmp_path)


class Writer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *changes: tuple[str, str]) -> Path:
        text = EXAMPLE.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = self.folder / "settings.toml"
        path.write_text(text)
        return path


def problems(path: Path) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    return caught.value.problems


def test_the_example_loads(write: Writer) -> None:
    settings = load_settings(write())
    assert settings.default_host.name == "serve1"
    assert settings.slack.command("triage") == "/triage"
    assert settings.default_host.tiers["tp"].engine.kind == "vllm"


def test_a_hosts_own_load_test_caps_win_over_those_for_all_hosts(write: Writer) -> None:
    host = load_settings(write()).default_host
    assert (host.loadtest.qps_cap, host.loadtest.duration_cap_s) == (300, 1800)
    assert host.loadtest.profile("evening").min_new_tokens == 16
    own = ("[hosts.router]", "[hosts.loadtest]\nmax_qps = 60\n\n[hosts.router]")
    host = load_settings(write(own)).default_host
    assert (host.loadtest.qps_cap, host.loadtest.duration_cap_s) == (60, 1800)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "gpus = 8\nnvlinks",
            "gpus = 800\nnvlinks",
            ["hosts.0.gpus = 800", "less than or equal to 64", "settings.toml"],
        ),
        (
            'mode = "socket"',
            'mode = "carrier-pigeon"',
            ["slack.mode = 'carrier-pigeon'", "'socket' or 'http'"],
        ),
        (
            "stages_percent = [5, 25, 50, 100]",
            "stages_percent = [50, 25]",
            ["stages_percent", "end with 100"],
        ),
        ('server = "fallback"', 'server = "tp"', ["tiers", "must differ"]),
        ('socket = "/run/haproxy/admin.sock"\n', "", ["router", "admin socket", "set socket"]),
        (
            "hold_s = 120",
            "hold_seconds = 120",
            ["hosts.0.restore.hold_seconds", "not a known setting", "spelling"],
        ),
        (
            "[access.approvals.restore]",
            "[access.approvals.restart]",
            ["approvals", "restart", "not an action"],
        ),
        ('name = "vllm-tp.service"', 'name = "vllm-tp; rm -rf /"', ["unit", "name", "vllm-tp; rm -rf /"]),
    ],
)
def test_a_wrong_value_is_named_with_its_source(
    write: Writer, old: str, new: str, expected: list[str]
) -> None:
    text = " ".join(problems(write((old, new))))
    for part in expected:
        assert part in text, text


def test_the_environment_overrides_the_file_and_is_named_when_wrong(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_ONCALL_SLACK__INCIDENT_CHANNEL", "fires")
    assert load_settings(write()).slack.incident_channel == "fires"
    monkeypatch.setenv("GPU_ONCALL_SLACK__EDIT_INTERVAL_S", "soon")
    (problem,) = problems(write())
    assert "slack.edit_interval_s = 'soon'" in problem
    assert "the environment variable GPU_ONCALL_SLACK__EDIT_INTERVAL_S" in problem


def test_a_dotenv_file_is_read_and_named_when_wrong(write: Writer) -> None:
    (write.folder / ".env").write_text("GPU_ONCALL_LOG_LEVEL=loud\n")
    (problem,) = problems(write())
    assert "log_level = 'loud'" in problem
    assert ".env" in problem


def test_no_secret_is_ever_printed(write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_ONCALL_SLACK__BOT_TOKEN", "xoxb-very-secret")
    settings = load_settings(write())
    assert "very-secret" not in repr(settings)
    assert "very-secret" not in settings.model_dump_json()
    monkeypatch.setenv("GPU_ONCALL_SLACK__BOT_TOKEN__X", "xoxb-very-secret")
    monkeypatch.delenv("GPU_ONCALL_SLACK__BOT_TOKEN")
    assert "very-secret" not in " ".join(problems(write()))
    monkeypatch.delenv("GPU_ONCALL_SLACK__BOT_TOKEN__X")
    monkeypatch.setenv("GPU_ONCALL_DATABASE_URL", "mysql://oncall:very-secret@db/x")
    assert "very-secret" not in " ".join(problems(write()))
    monkeypatch.delenv("GPU_ONCALL_DATABASE_URL")
    monkeypatch.setenv("GPU_ONCALL_HOSTS", '[{"tiers": {"tp": {"engine": {"api_key": "very-secret"}}}}]')
    assert "very-secret" not in " ".join(problems(write()))


def test_a_host_that_is_wrong_is_not_also_reported_as_missing(write: Writer) -> None:
    (problem,) = problems(write(("gpus = 8", "gpus = 400")))
    assert problem.startswith("hosts.0.gpus = 400")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "cannot be read"), ("hosts = [", "is not TOML"), ("", "hosts: is missing")],
)
def test_an_unusable_file_is_reported(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_text(content)
    assert expected in " ".join(problems(path))


def test_a_command_can_be_renamed_and_a_bad_name_is_refused(write: Writer) -> None:
    renamed = write(("# commands = { triage", "commands = { triage"))
    assert load_settings(renamed).slack.command("triage") == "/gpu-triage"
    bad = write(('# commands = { triage = "gpu-triage"', 'commands = { triage = "gpu triage"'))
    assert "slack.commands = {...}: 'gpu triage' cannot be the name of a slash command" in " ".join(
        problems(bad)
    )
