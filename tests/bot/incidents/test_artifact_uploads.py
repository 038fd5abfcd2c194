"""A bucket as artifact store, against a real S3 server: an upload that fails loses nothing, and links keep working."""

import errno
import http.client
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import pytest

from bot.cli.doctor.machine import check_artifacts
from bot.incidents import artifact_outbox
from bot.incidents.artifact_backends.folder import FolderBackend
from bot.incidents.artifacts import ArtifactStore
from bot.settings.model import ArtifactSettings
from tests.bot.incidents.test_artifacts import RUN, Shelf, parts
from tests.bot.toys import toy_settings

BUILT = Path(__file__).parents[3] / "var/moto/bin/moto_server"
PATH = f"{RUN}/capture/report.txt"


class Line(ThreadingHTTPServer):
    """The line to the S3 server, which can be broken in several ways."""

    daemon_threads = True
    fault = ""

    def __init__(self, server_port: int) -> None:
        self.server_port_behind = server_port
        super().__init__(("127.0.0.1", 0), Passing)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of the tests."""


class Passing(BaseHTTPRequestHandler):
    """Passes requests on to the S3 server, as long as the line has no fault."""

    protocol_version = "HTTP/1.1"
    server: Line

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault
        if fault == "denied":
            return self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        if fault == "overloaded":
            return self._answer(503, b"<Error><Code>SlowDown</Code></Error>")
        if fault == "cut" and self.command == "PUT":
            return self.connection.shutdown(socket.SHUT_RDWR)
        behind = http.client.HTTPConnection("127.0.0.1", self.server.server_port_behind, timeout=20)
        behind.request(self.command, self.path, body, dict(self.headers.items()))
        answer = behind.getresponse()
        content = answer.read()
        if fault == "damaged" and self.command == "GET":
            content = content[:-1] + b"?"
        return self._answer(answer.status, content, dict(answer.getheaders()))

    do_PUT = do_HEAD = do_DELETE = do_POST = do_GET

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        if headers is None:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    program = str(BUILT) if BUILT.exists() else shutil.which("moto_server")
    if program is None:
        pytest.skip("no S3 server: make var/moto/bin/moto_server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(OSError):
            made = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            made.request("PUT", "/evidence")
            made.getresponse().read()
            made.close()
            break
        time.sleep(0.1)
    yield port
    server.terminate()
    server.wait(10)


class BucketShelf(Shelf):
    """A shelf whose store is a bucket behind a line."""

    def __init__(self, folder: Path, line: Line) -> None:
        super().__init__(folder)
        self.line, self.endpoint = line, f"http://127.0.0.1:{line.server_port}"
        self.settings = toy_settings(folder / "state").model_copy(
            update={"artifacts": ArtifactSettings(url=f"s3://evidence/{folder.name}", endpoint=self.endpoint)}
        )
        self.artifacts = ArtifactStore(self.settings, self.store)

    @property
    def waiting(self) -> list[str]:
        assert self.artifacts.outbox is not None
        return self.artifacts.outbox.waiting()

    @property
    def said(self) -> list[str]:
        return [entry.kind for entry in self.store.audit.of_run(RUN) if entry.kind.startswith("artifact.")]

    def content(self, url: str) -> bytes:
        with self.artifacts.open(*parts(url))[1] as file:
            return file.read()


@pytest.fixture
def bucket(tmp_path: Path, s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketShelf]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    line = Line(s3_port)
    made = BucketShelf(tmp_path, line)
    yield made
    made.store.close()
    line.shutdown()
    line.server_close()


async def test_a_link_works_before_during_and_after_the_upload(bucket: BucketShelf) -> None:
    record = await bucket.artifacts.store(RUN, "capture", bucket.file())
    assert bucket.waiting == [PATH] and bucket.content(record.url) == b"evidence"
    assert bucket.artifacts.deliver() == 1 and bucket.waiting == []
    assert bucket.content(record.url) == b"evidence" and bucket.artifacts.read(record) == b"evidence"
    assert bucket.said == ["artifact.stored"]  # what goes well is said once
    bucket.clock.now += 40 * 86_400
    assert bucket.artifacts.sweep() == 1
    with pytest.raises(FileNotFoundError):
        bucket.artifacts._backend.open(PATH, "rb")


@pytest.mark.parametrize("fault", ["away", "denied", "overloaded", "cut", "damaged"])
async def test_an_upload_that_fails_loses_nothing_is_said_once_and_arrives_later(
    bucket: BucketShelf, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.incidents.artifact_backends.object_store.RETRIES", 0)
    record = await bucket.artifacts.store(RUN, "capture", bucket.file())
    right = bucket.artifacts._backend
    if fault == "away":
        bucket.artifacts.outbox._remote = type(right)(right._url, endpoint="http://127.0.0.1:1")  # type: ignore
    bucket.line.fault = fault
    for _ in range(2):
        assert bucket.artifacts.deliver() == 0
    assert bucket.waiting == [PATH] and bucket.content(record.url) == b"evidence"
    assert bucket.said == ["artifact.stored", "artifact.waiting"]
    bucket.line.fault = ""
    bucket.artifacts.outbox._remote = right  # type: ignore[union-attr]
    assert bucket.artifacts.deliver() == 1 and bucket.waiting == []
    assert bucket.content(record.url) == b"evidence"
    assert bucket.said[-1] == "artifact.uploaded"


async def test_a_process_that_is_killed_in_an_upload_continues_it_after_its_restart(
    bucket: BucketShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await bucket.artifacts.store(RUN, "capture", bucket.file(b"x" * 100_000))
    copy = artifact_outbox._copy_blocks

    def killed(source: IO[bytes], target: IO[bytes] | None = None) -> str:
        copy(source, target)
        raise SystemExit

    monkeypatch.setattr(artifact_outbox, "_copy_blocks", killed)
    with pytest.raises(SystemExit):
        bucket.artifacts.deliver()
    monkeypatch.setattr(artifact_outbox, "_copy_blocks", copy)
    again = ArtifactStore(bucket.settings, bucket.store)
    assert again.deliver() == 1 and bucket.waiting == []
    assert again.read(record) == b"x" * 100_000


async def test_one_file_that_the_store_refuses_does_not_hold_up_the_others(
    bucket: BucketShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "b.txt"):
        await bucket.artifacts.store(RUN, "capture", bucket.file(name=name))
    outbox = bucket.artifacts.outbox
    assert outbox is not None
    send = outbox._send
    monkeypatch.setattr(outbox, "_send", lambda path: "refused" if path.endswith("a.txt") else send(path))
    assert bucket.artifacts.deliver() == 1
    assert bucket.waiting == [f"{RUN}/capture/a.txt"]


async def test_what_a_full_disk_refuses_is_named_and_stored_once_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(tmp_path)
    with monkeypatch.context() as full:

        def no_space(self: FolderBackend, path: str, mode: str) -> IO[bytes]:
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(FolderBackend, "open", no_space)
        described = shelf.file()
        record = await shelf.artifacts.store(RUN, "capture", described)
    assert record.url == ""
    entry = shelf.store.audit.of_run(RUN)[-1]
    assert "disk is full" in entry.text and str(described.path) in entry.text and "free some" in entry.text
    assert shelf.artifacts.deliver() == 1 and shelf.artifacts.deliver() == 0
    run = shelf.store.get(RUN)
    assert run is not None
    with shelf.artifacts.open(*parts(run.artifacts[0].url))[1] as file:
        assert file.read() == b"evidence"
    shelf.store.close()


async def test_doctor_keeps_a_file_in_the_bucket_and_says_what_waits(bucket: BucketShelf) -> None:
    (check,) = await check_artifacts(bucket.settings)
    assert check.status == "ok", check
    await bucket.artifacts.store(RUN, "capture", bucket.file())
    bucket.line.fault = "denied"
    (check,) = await check_artifacts(bucket.settings)
    assert check.status == "failed" and "1 file(s) wait" in str(check)
    assert await check_artifacts(toy_settings(bucket.folder / "other")) == []
