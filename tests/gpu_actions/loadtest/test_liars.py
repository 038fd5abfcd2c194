"""Bad answers that other tools count as served are each recognised and put in their own class."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from gpu_actions.loadtest.outcomes import Outcome
from gpu_actions.loadtest.preflight import preflight
from gpu_actions.loadtest.result import RunVerdict
from gpu_actions.loadtest.run import measure
from gpu_actions.loadtest.target import LoadTestRefused, fetch, resolve_target
from tests.gpu_actions.loadtest.conftest import StartServer, Truth
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


async def outcomes_of(server: Truth, *, timeout_s: float = 0.6, stall_s: float = 0.3) -> list[str]:
    """Put half a second of load on a server. Return how each request ended."""
    spec = server.spec(target_qps=40, duration_s=0.5, warmup_s=0, timeout_s=timeout_s, stall_s=stall_s)
    generator, _ = await generate(spec)
    return [Outcome(code).label for code in generator.records.outcome]


async def test_each_bad_answer_gets_its_own_class_and_the_good_half_is_served(
    start_server: StartServer,
) -> None:
    servers = [start_server(ttft_ms=5, itl_ms=1, lie=lie, every=2, keep_alive=lie != "reset") for lie in LIES]
    found: list[list[str]] = []
    for number in range(0, len(servers), 5):
        some = servers[number : number + 5]
        found += await asyncio.gather(*(outcomes_of(one, timeout_s=1.2, stall_s=0.6) for one in some))
    assert {lie: set(labels) for lie, labels in zip(LIES, found, strict=True)} == {
        lie: {"ok", expected} for lie, expected in LIES.items()
    }
    for labels, expected in zip(found, LIES.values(), strict=True):
        assert labels.count(expected) == pytest.approx(len(labels) / 2, abs=1)


async def test_a_whole_answer_in_an_unusual_shape_is_served(start_server: StartServer) -> None:
    shapes = ("split", "crlf", "no_terminator", "content_length")
    servers = [start_server(ttft_ms=5, itl_ms=10, lie=shape) for shape in shapes]
    # Every answer here is whole, so the deadlines only need to be out of reach of a busy machine.
    found = await asyncio.gather(*(outcomes_of(server, timeout_s=10, stall_s=1.5) for server in servers))
    assert {shape: set(labels) for shape, labels in zip(shapes, found, strict=True)} == {
        shape: {"ok"} for shape in shapes
    }


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
    result = await measure(server.spec())
    assert result.verdict is RunVerdict.FAILED
    assert result.errors[0].name == "error_event"
    assert result.errors[0].example == "the engine fell over"
    assert result.error_percent == pytest.approx(33, abs=5)


async def test_requests_that_never_end_raise_the_percentiles_instead_of_being_left_out(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(ttft_ms=5, itl_ms=1, lie="timeout", every=4)
    result = await measure(server.spec(timeout_s=1))
    assert result.latency.ttft.p99.at_least
    assert result.latency.ttft.p99.value_ms == pytest.approx(1000, abs=250)
    assert (
        result.latency.ttft.p50.value_ms < 100
    )  # half of the requests are honest ones, of 5 ms on a quiet machine
    assert result.latency.ttft.censored == result.errors[0].count


async def test_an_engine_that_dies_midway_ends_the_run_with_one_clear_line(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(ttft_ms=5, itl_ms=1, die_after=40)
    result = await measure(server.spec(duration_s=60))
    assert result.verdict is RunVerdict.FAILED
    assert result.partial
    assert "the engine died" in result.reasons[0]
    assert result.requests.ok > 10
    assert result.times.measured_s < 15


async def test_a_service_that_does_not_listen_fails_the_run(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server()
    server.process.kill()
    server.process.wait()
    result = await measure(server.spec())
    assert result.verdict is RunVerdict.FAILED
    assert result.exit_code == 1
    assert "connection refused" in result.reasons[0]
    assert result.latency.ttft.p99.value_ms is None, "an empty percentile is null, never 0"


async def test_a_wrong_model_is_refused_with_the_names_that_are_served(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(model="llama")
    with pytest.raises(LoadTestRefused, match=r"model = 'truth'.*'llama'"):
        await measure(server.spec())


def certificate(tmp_path: Path) -> Path:
    """Create a self-signed certificate for 127.0.0.1, key included, with the system's openssl."""
    path = tmp_path / "server.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text((tmp_path / "key.pem").read_text() + (tmp_path / "cert.pem").read_text())
    return path


async def test_tls_works_with_its_authority_and_is_refused_without_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    pem = certificate(tmp_path)
    server = start_server(cert=str(pem), ttft_ms=5)
    url = f"https://127.0.0.1:{server.port}"
    trusted = await measure(server.spec(url=url, tls_ca=tmp_path / "cert.pem", duration_s=1))
    assert trusted.verdict is RunVerdict.PASSED, trusted.reasons
    with pytest.raises(LoadTestRefused, match="not trusted"):
        await measure(server.spec(url=url))


async def test_a_certificate_that_is_trusted_for_the_service_is_not_trusted_for_a_metrics_page_of_another_host(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(cert=str(certificate(tmp_path)), ttft_ms=5)
    service, other = f"https://127.0.0.1:{server.port}", f"https://localhost:{server.port}/metrics"
    for tls in ({"tls_insecure": True}, {"tls_ca": tmp_path / "cert.pem"}):
        target = await resolve_target(server.spec(url=service, **tls))
        assert (await fetch(target, f"{service}/metrics"))[0] == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            await fetch(target, other)


async def test_the_query_of_a_metrics_url_is_sent(start_server: StartServer) -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as page:
        port = page.sockets[0].getsockname()[1]
        target = await resolve_target(start_server().spec())
        await fetch(target, f"http://127.0.0.1:{port}/federate?match=vllm&x=1")
    assert asked == [b"GET /federate?match=vllm&x=1 HTTP/1.1\r\n"]


async def test_https_to_a_plain_port_is_refused_in_one_line(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server()
    with pytest.raises(LoadTestRefused, match="TLS failed") as caught:
        await measure(server.spec(url=f"https://127.0.0.1:{server.port}"))
    assert "\n" not in str(caught.value)


async def test_an_engine_whose_counters_disagree_is_named(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(ttft_ms=5, itl_ms=1, token_bias=-3)
    result = await measure(server.spec())
    assert result.cross_check.agrees is False
    assert any("counts disagree" in warning for warning in result.warnings)


@pytest.mark.parametrize("lie", ["http_429", "http_503"])
async def test_a_service_that_refuses_some_requests_is_not_taken_for_one_that_is_down(
    start_server: StartServer, lie: str
) -> None:
    spec = start_server(lie=lie, every=2).spec()
    target = await resolve_target(spec)
    for _ in range(2):  # every other request is refused, so at least one of these begins with a refusal
        assert (await preflight(spec, target)).probe_tokens == 2
