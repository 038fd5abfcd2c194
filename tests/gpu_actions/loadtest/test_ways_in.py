"""Every way to start a load: a role is needed, and the caps of the host hold."""

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.cli.local import run_local
from bot.hosts import Hosts
from bot.presenter.message import Message, actions, button
from bot.presenter.plan_message import START_PROPOSED
from bot.runs.planning import Planner
from bot.settings.model import Settings
from bot.store.records import Person
from gpu_actions import registry
from gpu_actions.action import PlanRefused
from gpu_actions.config.policies import LoadPolicy, LoadTestSettings
from gpu_actions.fallback.gpus import Candidate, Choice
from gpu_actions.fallback.plan_steps import Order, fallback_steps
from gpu_actions.loadtest.cli import main
from gpu_actions.loadtest.mirror import highest_rate
from gpu_actions.restore.loadcheck import restore_load
from gpu_actions.tier.preflight import gather_facts
from tests.bot.desk import Desk, desk
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.loadtest.test_recent import traffic_of
from tests.gpu_actions.site import host_config, make_site

PROPOSED = json.dumps({"action": "loadtest", "host": "toy", "options": {}})


@pytest.fixture
async def at_desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as it:
        yield it
        it.release()


@pytest.mark.parametrize(
    "typed",
    [
        "/loadtest start",
        "/loadtest start toy profile=tp",
        "/loadtest baseline record b",
        "/gpu loadtest start",
        "@gpu-oncall loadtest start",
        "@gpu-oncall loadtest baseline record b",
        "press: Start",
        "/loadtest form",
    ],
)
async def test_no_way_in_starts_load_for_a_person_without_the_role(at_desk: Desk, typed: str) -> None:
    if typed.startswith("press"):
        message = Message("proposed", (actions(button("Start", START_PROPOSED, PROPOSED)),))
        await at_desk.bot.client.chat_postMessage(
            channel="incidents", text=message.text, blocks=[dict(block) for block in message.blocks]
        )
        await at_desk.press("Start", user="viewer")
    else:
        await at_desk.say(typed, user="viewer")
    deadline = time.monotonic() + 10
    while not any("You may not" in text and "loadtest" in text for text in await at_desk.texts()):
        assert time.monotonic() < deadline, await at_desk.texts()
        await asyncio.sleep(0.02)
    assert at_desk.bot.runs.list() == []


def capped(folder: Path, **caps: float) -> Settings:
    return Settings(
        _env_file=None,
        state_dir=folder,
        loadtest=LoadTestSettings(max_qps=100),
        hosts=(host_config(folder).model_copy(update={"loadtest": LoadTestSettings(**caps)}),),
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"qps": "61"}, "qps = 61 is above the cap of 60"),
        ({"qps": "61", "baseline": "b"}, "cap of 60"),
        ({"qps": "61", "find": "knee"}, "cap of 60"),
        ({"qps": "61", "workload": "recent"}, "cap of 60"),
        ({"duration": "121", "profile": "quick"}, "duration = 121 is above the cap of 120"),
    ],
)
async def test_the_hosts_own_cap_wins_in_slack_and_in_the_shells_local_runs(
    tmp_path: Path, options: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every Slack way in plans with `Planner`, `--local` with `run_local`; nothing serves here, and the cap is said first."""
    settings = capped(tmp_path, max_qps=60, max_duration_s=120)
    planner = Planner(
        settings, actions=registry.actions(), hosts=Hosts(settings), verdict=lambda _: None, clock=time.time
    )
    with pytest.raises(PlanRefused, match=says):
        await planner.plan("loadtest", "test", options, Person(id="U1", name="a"))
    typed = [f"{name}={value}" for name, value in options.items()]
    for verb in ("plan", "start"):
        code = await run_local(
            settings, action="loadtest", verb=verb, options=typed, host=None, local=True, as_json=False
        )
        assert code == 1
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--target-qps", "61"], "qps = 61 is above the cap of 60 requests/s for serve1"),
        (["--duration", "121"], "duration = 121 is above the cap of 120 s for serve1"),
        (["--profile", "tp"], "above the cap"),
        (["--find-knee", "--knee-max-qps", "61"], "qps = 61"),
    ],
)
def test_the_command_line_obeys_the_caps_of_the_host_that_its_url_belongs_to(
    tmp_path: Path, flags: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    file = tmp_path / "settings.toml"
    file.write_text(
        '[loadtest]\nmax_qps = 100\nmax_duration_s = 120\n[[hosts]]\nname = "serve1"\n[hosts.loadtest]\nmax_qps = 60\n'
        '[hosts.router]\nurl = "http://127.0.0.1:9"\n[hosts.tiers.tp.engine]\nurl = "http://10.0.0.9:8101"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPU_ONCALL_CONFIG", raising=False)
    load = ["--model", "m", "--quiet", "--url"]
    for url in ("http://127.0.0.1:9", "http://localhost:9/v1", "http://10.0.0.9:8101"):
        assert main(["--settings", str(file), *flags, *load, url]) == 2
        assert says in capsys.readouterr().err
    monkeypatch.setenv("GPU_ONCALL_CONFIG", str(file))
    assert main([*flags, *load, "http://127.0.0.1:9"]) == 2, "the bot's own settings hold without being named"
    assert says in capsys.readouterr().err
    assert main(["orchestrate", "30", "61", "x", *load[:2], "--url", "http://127.0.0.1:9"]) == 2
    assert "cap of 60" in capsys.readouterr().err
    # A URL that belongs to no host has no cap: this one is refused by nobody and simply down.
    assert main([*flags, *load, "http://127.0.0.1:10"]) in {1, 3}


async def test_the_load_tests_of_fallback_restore_and_mirror_stay_under_the_caps_too(
    site_with: MakeSite, tmp_path: Path
) -> None:
    site = make_site(tmp_path)
    heavy = LoadPolicy(target_qps=180, duration_s=900)
    policy = site.host.config
    config = policy.model_copy(
        update={
            "loadtest": LoadTestSettings(max_qps=60, max_duration_s=120, mirror_share_percent=50),
            "fallback": policy.fallback.model_copy(update={"validate_load": heavy}),
            "restore": policy.restore.model_copy(update={"load": heavy}),
        }
    )
    host = dataclasses.replace(site.host, config=config)
    load, notes = await restore_load(host)
    assert (load.target_qps, load.duration_s) == (60, 120)
    assert "the cap of test" in notes[0]
    facts = await gather_facts(host)
    choice = Choice(candidates=(Candidate(gpu="", reason="", beside=True, note=""),))
    (step,) = [one for one in fallback_steps(host, facts, choice, Order.PLANNED) if one.id == "validate"]
    assert (step.args["load"]["target_qps"], step.args["load"]["duration_s"]) == (60, 120)
    assert highest_rate(host, "tp", traffic_of(400)) == 60
