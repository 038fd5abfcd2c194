# ruff: noqa: S310  (the URLs are the tests' own)
"""A real engine process for tests, and a small client for it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

START_TIMEOUT_S = 60


class RunningEngine:
    """One engine in a session of its own, with its log in a file."""

    def __init__(self, log_path: Path, *arguments: str) -> None:
        self.log_path = log_path
        argv = [
            sys.executable,
            "-m",
            "demo.engine",
            "--port",
            "0",
            "--device",
            "cpu",
            *arguments,
        ]
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        self.url = "http://" + self.wait_for_log(r"listening on http://(\S+)")

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_for_log(self, pattern: str, timeout_s: float = START_TIMEOUT_S) -> str:
        """Wait for a line. Return its first group, or the whole match."""

        def search() -> str | None:
            found = re.search(pattern, self.log)
            if found is None and self.process.poll() is not None:
                raise AssertionError(f"the engine exited with {self.process.returncode}:\n{self.log}")
            return found and found.group(found.lastindex or 0)

        return wait_for(search, timeout_s)

    def ready(self) -> "RunningEngine":
        self.wait_for_log("ready: generated")
        return self

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def post(self, path: str, body: Any, timeout_s: float = 30) -> tuple[int, Any]:
        """POST JSON. Return the status and the body."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def complete(self, prompt: Any, max_tokens: int = 8, **fields: Any) -> dict[str, Any]:
        body = {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, **fields}
        status, answer = self.post("/v1/completions", body)
        assert status == 200, answer
        return answer

    def text(self, prompt: Any, max_tokens: int = 8, **fields: Any) -> str:
        return str(self.complete(prompt, max_tokens, **fields)["choices"][0]["text"])

    def metric(self, name: str, label: str = "") -> float:
        with urllib.request.urlopen(self.url + "/metrics", timeout=5) as answer:
            page = answer.read().decode()
        for line in page.splitlines():
            if line.startswith(name + "{") and label in line:
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"{name} {label} is not in:\n{page}")

    @property
    def running(self) -> float:
        return self.metric("vllm:num_requests_running")

    @property
    def waiting(self) -> float:
        return self.metric("vllm:num_requests_waiting")

    def ranks(self) -> list[psutil.Process]:
        """The child processes, by rank."""
        return psutil.Process(self.process.pid).children()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


def wait_for(condition: Callable[[], Any], timeout_s: float = 20) -> Any:
    """Poll until the condition returns something true, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


@asynccontextmanager
async def stream(engine: RunningEngine, **body: Any) -> AsyncIterator[aiohttp.ClientResponse]:
    """A streamed completion."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            engine.url + body.pop("path", "/v1/completions"),
            json={"stream": True, "ignore_eos": True, **body},
        ) as response,
    ):
        yield response


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    """All events of a stream: parsed JSON, and "[DONE]" as text."""
    found = []
    async for line in response.content:
        if line.startswith(b"data: "):
            text = line[6:].strip().decode()
            found.append(text if text == "[DONE]" else json.loads(text))
    return found
