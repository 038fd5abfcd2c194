"""Answers that other tools count as served, each caught and put in its own class."""

import subprocess
from pathlib import Path

import pytest

from gpu_actions.loadtest.outcomes import Outcome
from gpu_actions.loadtest.result import RunVerdict
from gpu_actions.loadtest.run import LoadTestRefused, run_load_test
from tests.gpu_actions.loadtest.conftest import StartServer
from tests.gpu_actions.loadtest.test_truth import generate

LIES = {
    "error_event": "error_event",
    "cut_stream": "cut_stream",
    "clean_cut": "cut_stream",
    "empty_chunks": "empty_response",
    "wrong_count": "wrong_token_count",
    "more_chunks": "wrong_token_count",
    "stall": "stall",
    "reset": "connection_reset",
    "http_429": "http_429",
    "http_503": "http_503",
    "http_500": "http_5xx",
    "http_404": "http_4xx",
    "timeout": "timeout",
    "no_done": "missing_done",
    "wrong_reason": "wrong_finish_reason",
    "no_reason": "wrong_finish_reason",
    "no_usage": "missing_usage",
    "not_sse": "bad_response",
    "garbage": "bad_response",
}


@pytest.mark.parametrize(("lie", "expected"), LIES.items())
async def test_each_lie_is_caught_and_classed(start_server: StartServer, lie: str, expected: str) -> None:
    server = start_server(ttft_ms=5, itl_ms=1, lie=lie, every=2)
    spec = server.spec(target_qps=40, duration_s=0.5, warmup_s=0, timeout_s=0.6, stall_s=0.3)
    generator, _ = await generate(spec)
    labels = [Outcome(code).label for code in generator.records.outcome]
    assert set(labels) == {"ok", expected}, generator.counters.first_error
    assert labels.count(expected) == pytest.approx(len(labels) / 2, abs=1)


@pytest.mark.parametrize("shape", ["split", "crlf", "no_terminator", "content_length"])
async def test_a_whole_answer_in_an_unusual_shape_is_served(start_server: StartServer, shape: str) -> None:
    server = start_server(ttft_ms=5, itl_ms=1, lie=shape)
    generator, _ = await generate(server.spec(target_qps=20, duration_s=0.5, warmup_s=0, stall_s=0.5))
    assert {Outcome(code).label for code in generator.records.outcome} == {"ok"}, (
        generator.counters.first_error
    )


async def test_a_server_that_closes_each_connection_is_served_with_new_ones(
    start_server: StartServer,
) -> None:
    server = start_server(ttft_ms=5, itl_ms=1, keep_alive=False)
    generator, _ = await generate(server.spec(target_qps=40, duration_s=1, warmup_s=0))
    assert {Outcome(code).label for code in generator.records.outcome} == {"ok"}, (
        generator.counters.first_error
    )


async def test_an_idle_connection_that_the_server_closed_costs_no_request(start_server: StartServer) -> None:
    server = start_server(ttft_ms=2, itl_ms=1, close_idle_after_s=0.02)
    generator, _ = await generate(server.spec(target_qps=30, duration_s=2, warmup_s=0))
    assert {Outcome(code).label for code in generator.records.outcome} == {"ok"}, (
        generator.counters.first_error
    )


async def test_failed_requests_fail_the_run_and_are_named(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(ttft_ms=5, itl_ms=1, lie="error_event", every=3)
    result = await run_load_test(server.spec(), out_dir=tmp_path)
    assert result.verdict is RunVerdict.FAILED
    assert result.errors[0].name == "error_event"
    assert result.errors[0].example == "the engine fell over"
    assert result.error_percent == pytest.approx(33, abs=5)


async def test_requests_that_never_end_push_the_percentiles_up_instead_of_leaving_them(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(ttft_ms=5, itl_ms=1, lie="timeout", every=4)
    result = await run_load_test(server.spec(timeout_s=1), out_dir=tmp_path)
    assert result.latency.ttft.p99.at_least
    assert result.latency.ttft.p99.value_ms == pytest.approx(1000, abs=250)
    assert result.latency.ttft.p50.value_ms == pytest.approx(5, abs=2)
    assert result.latency.ttft.censored == result.errors[0].count


async def test_an_engine_that_dies_midway_ends_the_run_with_one_clear_line(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(ttft_ms=5, itl_ms=1, die_after=40)
    result = await run_load_test(server.spec(duration_s=60), out_dir=tmp_path)
    assert result.verdict is RunVerdict.FAILED
    assert result.partial
    assert "the engine died" in result.reasons[0]
    assert result.requests.ok > 10
    assert result.times.measured_s < 15
    assert (tmp_path / "load_test.json").is_file()


async def test_nothing_listening_is_a_failed_run_with_its_file(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server()
    server.process.kill()
    server.process.wait()
    result = await run_load_test(server.spec(), out_dir=tmp_path)
    assert result.verdict is RunVerdict.FAILED
    assert result.exit_code == 1
    assert "connection refused" in result.reasons[0]
    assert result.latency.ttft.p99.value_ms is None, "an empty percentile is null, never 0"


async def test_a_wrong_model_is_refused_with_the_names_that_are_served(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(model="llama")
    with pytest.raises(LoadTestRefused, match=r"model = 'truth'.*'llama'"):
        await run_load_test(server.spec(), out_dir=tmp_path)


def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, key included, made by the system's openssl."""
    path = tmp_path / "server.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text((tmp_path / "key.pem").read_text() + (tmp_path / "cert.pem").read_text())
    return path


async def test_tls_works_with_its_authority_and_is_refused_without(
    start_server: StartServer, tmp_path: Path
) -> None:
    pem = certificate(tmp_path)
    server = start_server(cert=str(pem), ttft_ms=5)
    url = f"https://127.0.0.1:{server.port}"
    trusted = await run_load_test(
        server.spec(url=url, tls_ca=tmp_path / "cert.pem", duration_s=1), out_dir=tmp_path / "a"
    )
    assert trusted.verdict is RunVerdict.PASSED, trusted.reasons
    with pytest.raises(LoadTestRefused, match="not trusted"):
        await run_load_test(server.spec(url=url), out_dir=tmp_path / "b")


async def test_https_to_a_plain_port_is_refused_in_one_line(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server()
    with pytest.raises(LoadTestRefused, match="TLS failed") as caught:
        await run_load_test(server.spec(url=f"https://127.0.0.1:{server.port}"), out_dir=tmp_path)
    assert "\n" not in str(caught.value)


async def test_an_engine_whose_counters_disagree_is_named(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(ttft_ms=5, itl_ms=1, token_bias=-3)
    result = await run_load_test(server.spec(), out_dir=tmp_path)
    assert result.cross_check.agrees is False
    assert any("counts disagree" in warning for warning in result.warnings)
