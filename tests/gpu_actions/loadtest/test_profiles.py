"""Profiles, the caps of a host, and the range of new tokens."""

import argparse
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gpu_actions.action import PlanRefused
from gpu_actions.config.policies import LoadPolicy, LoadTestSettings
from gpu_actions.loadtest.assemble import workload_of
from gpu_actions.loadtest.baseline import differing_fields
from gpu_actions.loadtest.cli import main
from gpu_actions.loadtest.request import LoadTestArguments, refuse_above_caps, requested_spec
from gpu_actions.loadtest.result import RunVerdict
from gpu_actions.loadtest.run import measure
from gpu_actions.loadtest.schedule import make_schedule
from gpu_actions.loadtest.shell import add_load_flags, spec_from
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import LoadTestRefused
from tests.gpu_actions.loadtest.conftest import StartServer
from tests.gpu_actions.loadtest.test_schedule import spec
from tests.gpu_actions.site import make_site

OWN = """
[loadtest]
max_qps = 100
[loadtest.profiles.evening]
target_qps = 60
duration_s = 300
max_new_tokens = "16-64"
"""


def requested(
    folder: Path, settings: LoadTestSettings | None = None, **options: Any
) -> tuple[LoadSpec, tuple[str, ...]]:
    host = make_site(folder).host
    if settings is not None:
        host = dataclasses.replace(host, config=host.config.model_copy(update={"loadtest": settings}))
    arguments = LoadTestArguments(**options)
    refuse_above_caps(arguments, host.config.loadtest, host.name)
    return requested_spec(host, "tp", "http://127.0.0.1:1", arguments)


@pytest.mark.parametrize(
    ("profile", "qps", "seconds"), [("quick", 3, 10), ("fallback", 3, 20), ("tp", 180, 900)]
)
def test_the_built_in_profiles_are_the_runbooks(
    tmp_path: Path, profile: str, qps: float, seconds: float
) -> None:
    load, notes = requested(tmp_path, profile=profile)
    assert (load.target_qps, load.duration_s, load.max_new_tokens) == (qps, seconds, 4)
    assert (load.prompt_len_min, load.prompt_len_max) == (32, 64)
    assert notes == (f"profile {profile}",)


def test_a_typed_option_wins_over_the_profile_and_its_whole_range(tmp_path: Path) -> None:
    own = LoadTestSettings(profiles={"evening": LoadPolicy.model_validate({"max_new_tokens": "16-64"})})
    load, _ = requested(tmp_path, own, profile="evening")
    assert (load.min_new_tokens, load.max_new_tokens) == (16, 64)
    load, _ = requested(tmp_path, own, profile="evening", max_new_tokens=8, qps=5, slo_ttft_ms=700)
    assert (load.min_new_tokens, load.max_new_tokens, load.target_qps) == (None, 8, 5)
    assert load.slo_ttft_ms == 700


def test_an_unknown_profile_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="profile = tpp: is not known; known: quick, fallback, tp"):
        requested(tmp_path, profile="tpp")


def test_the_hosts_cap_lowers_a_profile_and_says_so(tmp_path: Path) -> None:
    load, notes = requested(tmp_path, LoadTestSettings(max_qps=60, max_duration_s=120), profile="tp")
    assert (load.target_qps, load.duration_s) == (60, 120)
    assert notes[1].startswith("lowered from 180 to 60 requests/s, the cap of")
    assert notes[2].startswith("lowered from 900 to 120 s, the cap of")


def test_a_typed_rate_or_duration_above_the_cap_is_refused_with_the_cap(tmp_path: Path) -> None:
    caps = LoadTestSettings(max_qps=60)
    with pytest.raises(PlanRefused) as refused:
        requested(tmp_path, caps, qps=61, duration=7200)
    assert refused.value.problems[0].startswith("qps = 61 is above the cap of 60 requests/s")
    assert "raise loadtest.max_qps" in refused.value.problems[0]
    assert refused.value.problems[1].startswith("duration = 7200 is above the cap of 3600 s")
    load, notes = requested(tmp_path, caps, profile="tp", qps=10)
    assert (load.target_qps, load.duration_s, notes) == (10, 900, ("profile tp",))


def test_what_a_host_leaves_out_comes_from_the_settings_for_all_hosts() -> None:
    common = LoadTestSettings(max_qps=100, max_duration_s=50, profiles={"tp": LoadPolicy(target_qps=9)})
    host = LoadTestSettings(max_qps=200, profiles={"night": LoadPolicy(target_qps=7)}).over(common)
    assert (host.qps_cap, host.duration_cap_s) == (200, 50)
    assert (host.profile("tp").target_qps, host.profile("night").target_qps) == (9, 7)


def flags(*argv: str) -> LoadSpec:
    parser = argparse.ArgumentParser()
    add_load_flags(parser)
    return spec_from(parser.parse_args(["--url", "http://127.0.0.1:1", "--model", "m", *argv]))


def test_the_shell_takes_profiles_from_a_settings_file_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(OWN)
    assert flags("--profile", "tp").target_qps == 180
    load = flags("--profile", "evening", "--settings", str(file), "--duration", "30")
    assert (load.target_qps, load.duration_s, load.new_tokens_text) == (60, 30, "16-64")
    assert (
        flags("--profile", "evening", "--settings", str(file), "--max-new-tokens", "8").new_tokens_text == "8"
    )
    with pytest.raises(LoadTestRefused, match="evening: is not known"):
        flags("--profile", "evening")
    file.write_text("[loadtest.profiles.evening]\ntarget_qps = -1")
    with pytest.raises(LoadTestRefused, match=r"profiles\.evening\.target_qps"):
        flags("--profile", "evening", "--settings", str(file))


def test_wrong_profiles_and_ranges_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    target = ["--url", "http://127.0.0.1:1", "--model", "m"]
    assert main([*target, "--profile", "nightly"]) == 2
    assert main([*target, "--max-new-tokens", "64-16"]) == 2
    assert main([*target, "--max-new-tokens", "many"]) == 2
    said = capsys.readouterr().err
    assert "nightly: is not known" in said
    assert "min_new_tokens = 64: is above max_new_tokens = 16" in said
    assert "max_new_tokens = 'many'" in said


def test_new_tokens_are_uniform_over_their_range_and_change_nothing_else() -> None:
    single, several = (
        make_schedule(spec(target_qps=300, max_new_tokens=asked, seed=3)) for asked in ("64", "16-64")
    )
    assert set(single.new_tokens) == {64}
    assert set(several.new_tokens) == set(range(16, 65))
    assert sum(several.new_tokens) / len(several) == pytest.approx(40, abs=1)
    assert (single.due_s, single.prompt_len) == (several.due_s, several.prompt_len)


def test_a_range_is_another_workload_and_a_number_has_the_fingerprint_it_always_had() -> None:
    def fingerprint(asked: str) -> str:
        load = spec(max_new_tokens=asked)
        return workload_of(load, make_schedule(load), "bytes").fingerprint

    assert fingerprint("64") != fingerprint("16-64")
    assert fingerprint("4") == "99a42a32451d", (
        "baselines that were recorded before the range existed stay in force"
    )


async def test_each_request_of_a_range_is_served_with_its_own_number(start_server: StartServer) -> None:
    server = start_server(ttft_ms=2, itl_ms=0.2)
    load = server.spec(duration_s=1, target_qps=40, max_new_tokens="4-12", nonce=0)
    result = await measure(load)
    assert result.requests.ok == 40
    schedule = make_schedule(load)
    assert result.rates.output_tokens == sum(schedule.new_tokens[schedule.warmup :])
    assert result.workload.min_new_tokens == 4


def test_listed_lengths_are_drawn_equally_often_and_are_another_workload() -> None:
    mixed = LoadSpec(
        url="http://h:1", model="m", target_qps=10, duration_s=6, warmup_s=0, seed=3,
        prompt_lengths=(10, 10, 500), answer_lengths=(4, 200),
    )  # fmt: skip
    schedule = make_schedule(mixed)
    assert Counter(schedule.prompt_len) == {10: 40, 500: 20}
    assert Counter(schedule.new_tokens) == {4: 30, 200: 30}
    assert (mixed.prompt_len_min, mixed.prompt_len_max, mixed.new_tokens_text) == (10, 500, "4-200")
    plain = mixed.model_copy(update={"prompt_lengths": ()})
    listed, ranged = (workload_of(one, make_schedule(one), "bytes") for one in (mixed, plain))
    assert listed.fingerprint != ranged.fingerprint
    assert "prompt_lengths" in differing_fields(listed, ranged)[0]


async def test_a_limit_per_token_suits_answers_of_mixed_lengths_and_catches_slow_tokens(
    start_server: StartServer,
) -> None:
    """Answers take 0.03 to 0.6 s: one limit for whole answers would pass the short slow ones or fail the long quick ones."""
    server = start_server(ttft_ms=20, itl_ms=20)
    load = {
        "answer_lengths": (4, 8, 30), "target_qps": 15, "duration_s": 2, "slo_e2e_ms": 100, "slo_e2e_per_token_ms": 200,
    }  # fmt: skip
    passed = await measure(server.spec(**load))
    assert passed.verdict is RunVerdict.PASSED, passed.reasons
    assert passed.latency.e2e_per_token is not None
    assert 20 <= (passed.latency.e2e_per_token.p50.value_ms or 0) < 100
    assert passed.rates.goodput_percent == 100
    failed = await measure(server.spec(**load, slo_itl_ms=10))
    assert failed.verdict is RunVerdict.FAILED
    assert failed.reasons[0].startswith("p99 ITL is 2")
    slow = await measure(server.spec(**{**load, "slo_e2e_per_token_ms": 15}))
    assert slow.reasons[0].startswith("p99 E2E per token is")
    assert slow.rates.goodput_percent == 0
