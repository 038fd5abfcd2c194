"""Prompts of different runs have nothing in common that a prefix cache could keep, unless the same prompts are asked for."""

import argparse

import pytest

from gpu_actions.loadtest.prompts import PromptMaker
from gpu_actions.loadtest.result import ClientFacts
from gpu_actions.loadtest.run import measure
from gpu_actions.loadtest.shell import add_load_flags, spec_from
from tests.gpu_actions.loadtest.conftest import StartServer
from tests.gpu_actions.loadtest.test_schedule import spec


async def test_two_runs_of_a_workload_send_different_prompts_and_the_recorded_nonce_repeats_them(
    start_server: StartServer,
) -> None:
    server = start_server(ttft_ms=2, itl_ms=0.5)
    load = server.spec(duration_s=0.5, target_qps=40, warmup_s=0)

    async def marks_of(nonce: int | None) -> tuple[set[float], int | None, str]:
        before = len(server.logged())
        result = await measure(load.model_copy(update={"nonce": nonce}))
        assert result.requests.ok == 20
        marks = {entry["mark"] for entry in server.logged()[before:]}
        assert len(marks) == 21, "the probe has a prompt of its own too"
        return marks, result.client.nonce, result.workload.fingerprint

    first, nonce, fingerprint = await marks_of(None)
    second, other_nonce, other_fingerprint = await marks_of(None)
    assert nonce != other_nonce
    assert not first & second
    assert fingerprint == other_fingerprint
    assert (await marks_of(nonce))[0] == first


@pytest.mark.parametrize("unit", ["bytes", "words"])
def test_prompts_of_two_nonces_share_no_beginning(unit: object) -> None:
    makers = [PromptMaker(spec(nonce=nonce), unit) for nonce in (0, 1, 2**40)]  # type: ignore[arg-type]
    beginnings = {maker.prompt(row, 64)[:12] for maker in makers for row in range(500)}
    assert len(beginnings) == 3 * 500


def test_a_seed_that_is_named_repeats_its_prompts_and_a_default_one_does_not() -> None:
    parser = argparse.ArgumentParser()
    add_load_flags(parser)
    target = ["--url", "http://127.0.0.1:1", "--model", "m"]

    def nonce_of(*flags: str) -> int | None:
        return spec_from(parser.parse_args([*target, *flags])).with_nonce().nonce

    assert nonce_of("--seed", "7") == 0
    assert nonce_of("--seed", "7", "--nonce", "5") == 5
    assert nonce_of() not in {0, nonce_of()}


def test_results_of_older_versions_have_no_nonce() -> None:
    facts = {
        "version": "0",
        "processes": 1,
        "event_loop": "x",
        "connections": 1,
        "cpu_s": 1,
        "cpu_us_per_request": 1,
    }
    assert ClientFacts.model_validate({**facts, "max_rss_mib": 1, "seed": 3}).nonce is None
