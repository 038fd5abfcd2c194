"""The artifact store: only the described file is copied, links cannot be forged, old files are removed."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from bot.incidents.artifacts import ArtifactStore, attempt_folder
from bot.incidents.incidents import Incidents
from bot.settings.model import ArtifactSettings, WebSettings
from bot.store.records import Person, Place, RunRecord, RunStatus, UserError
from bot.store.store import Store
from gpu_actions.models import Artifact
from gpu_actions.system.files import artifact_of
from tests.bot.toys import toy_settings

RUN = "toy-2345"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Shelf:
    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder = folder
        self.clock = Clock()
        settings = toy_settings(folder / "state").model_copy(
            update={"artifacts": ArtifactSettings(url=url, max_mib=1), "web": WebSettings(link_days=7)}
        )
        self.store = Store(settings.own_database_url, clock=self.clock)
        self.store.create()
        self.store.insert_run(
            RunRecord(
                id=RUN,
                action="toy",
                host="toy",
                status=RunStatus.RUNNING,
                requester=Person(id="U"),
                place=Place(channel="C"),
                created_at=self.clock(),
            ),
            dedupe_key="k",
            changes_host=False,
        )
        self.artifacts = ArtifactStore(settings, self.store)

    def file(self, content: bytes = b"evidence", name: str = "report.txt") -> Artifact:
        path = self.folder / name
        path.write_bytes(content)
        return artifact_of(path, source="test")


URLS = {"folder": "", "fsspec": "memory://{name}"}
"""A URL of each kind of store; {name} is unique."""


@pytest.fixture(params=URLS.values(), ids=URLS)
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path, request.param.format(name=tmp_path.name))
    yield made
    made.store.close()


def parts(url: str) -> tuple[str, str, str]:
    """Return the path, the signature and the end of a link."""
    path, _, query = url.split("/artifacts/")[1].partition("?")
    values = parse_qs(query)
    return path, values["sig"][0], values["until"][0]


async def test_a_stored_file_opens_with_its_own_link_only(shelf: Shelf) -> None:
    record = await shelf.artifacts.store(RUN, "capture", shelf.file())
    path, signature, until = parts(record.url)
    assert path == f"{RUN}/capture/report.txt"
    found, content = shelf.artifacts.open(path, signature, until)
    with content:
        assert content.read() == b"evidence"
    assert found.id == record.id
    for wrong in (signature[:-1], "0" * 32, "", "é"):
        with pytest.raises(UserError, match="not one of mine"):
            shelf.artifacts.open(path, wrong, until)
    with pytest.raises(UserError, match="not one of mine"):
        shelf.artifacts.open(f"{RUN}/capture/../../../secret", signature, until)
    for other in ("", str(int(until) + 1)):
        with pytest.raises(UserError, match="not one of mine"):
            shelf.artifacts.open(path, signature, other)


async def test_a_file_that_changed_since_it_was_described_gets_no_link(shelf: Shelf) -> None:
    described = shelf.file()
    described.path.write_bytes(b"replaced")
    record = await shelf.artifacts.store(RUN, "capture", described)
    assert record.url == ""
    assert [entry.kind for entry in shelf.store.audit.of_run(RUN)][-1] == "artifact.refused"
    with pytest.raises(UserError, match="missing"):
        shelf.artifacts.open(
            f"{RUN}/capture/report.txt", shelf.artifacts.signature(f"{RUN}/capture/report.txt")
        )


async def test_a_file_over_the_limit_is_listed_and_not_copied(shelf: Shelf) -> None:
    record = await shelf.artifacts.store(RUN, "capture", shelf.file(b"x" * (2**20 + 1)))
    assert record.url == ""
    assert "over artifacts.max_mib" in shelf.store.audit.of_run(RUN)[-1].text


async def test_a_name_that_would_leave_the_folder_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    honest = shelf.file()
    for name in ("../escaped.txt", "/etc/passwd", ".hidden", "a/b", ""):
        record = await shelf.artifacts.store(RUN, "capture", honest.model_copy(update={"name": name}))
        assert record.url == ""
    assert list(tmp_path.rglob("escaped*")) == []


async def test_the_same_name_replaces_a_file_and_another_attempt_does_not(shelf: Shelf) -> None:
    first = await shelf.artifacts.store(RUN, "capture", shelf.file(b"one"))
    again = await shelf.artifacts.store(RUN, "capture", shelf.file(b"two"))
    other = await shelf.artifacts.store(RUN, attempt_folder("capture", 2), shelf.file(b"three"))
    assert first.id == again.id != other.id
    assert again.artifact.sha256 == hashlib.sha256(b"two").hexdigest()
    run = shelf.store.get(RUN)
    assert run is not None
    assert len(run.artifacts) == 2
    shelf.store.set_file_id(again.id, "F123")
    run = shelf.store.get(RUN)
    assert run is not None
    assert run.artifacts[0].slack_file_id == "F123"


async def test_a_link_expires_and_a_new_one_opens_the_file(shelf: Shelf) -> None:
    record = await shelf.artifacts.store(RUN, "capture", shelf.file())
    earlier = (f"{RUN}/capture/report.txt", shelf.artifacts.signature(f"{RUN}/capture/report.txt"))
    shelf.artifacts.open(*earlier)[1].close()  # a link of a version whose links had no end
    shelf.clock.now += 8 * 86_400
    for link in (parts(record.url), earlier):
        with pytest.raises(UserError, match=f"has expired.*gpu-oncall links {RUN}"):
            shelf.artifacts.open(*link)
    run = shelf.store.get(RUN)
    assert run is not None
    ((_, fresh),) = shelf.artifacts.fresh_links(run)
    shelf.artifacts.open(*parts(fresh))[1].close()


async def test_the_oldest_files_make_room_and_those_of_an_open_incident_stay(tmp_path: Path) -> None:
    made = Shelf(tmp_path)
    limit = ArtifactSettings(max_total_gib=3000 / 2**30)
    settings = toy_settings(tmp_path / "state").model_copy(update={"artifacts": limit})
    store = ArtifactStore(settings, made.store)
    records = []
    for name in ("a", "b", "c", "d"):
        made.clock.now += 60
        records.append(await store.store(RUN, "capture", made.file(b"x" * 1000, name=f"{name}.txt")))
    incidents = Incidents(made.store)
    incident = incidents.open(host="toy", title="t", place=Place(channel="C"), by=Person(id="U"))
    incidents.join(incident.id, RUN)
    made.clock.now += 400 * 86_400
    assert store.sweep() == 0, "evidence of an open incident is never removed"
    made.clock.now -= 400 * 86_400
    incidents.close(incident.id, by=Person(id="U"))
    assert store.sweep() == 1
    with pytest.raises(UserError, match="made room"):
        store.open(*parts(records[0].url))
    store.open(*parts(records[1].url))[1].close()
    made.store.close()


async def test_old_files_are_removed_and_their_links_say_so(shelf: Shelf) -> None:
    old = await shelf.artifacts.store(RUN, "capture", shelf.file(name="old.txt"))
    shelf.clock.now += 20 * 86_400
    young = await shelf.artifacts.store(RUN, "capture", shelf.file(name="young.txt"))
    shelf.clock.now += 11 * 86_400
    assert shelf.artifacts.sweep() == 1
    assert shelf.artifacts.sweep() == 0
    with pytest.raises(UserError, match="retention_days"):
        shelf.artifacts.open(*parts(old.url))
    run = shelf.store.get(RUN)
    assert run is not None
    links = {record.id: link for record, link in shelf.artifacts.fresh_links(run)}
    shelf.artifacts.open(*parts(links[young.id]))[1].close()


async def test_links_survive_a_restart_and_their_key_is_private(tmp_path: Path) -> None:
    first = Shelf(tmp_path)
    record = await first.artifacts.store(RUN, "capture", first.file())
    again = ArtifactStore(toy_settings(tmp_path / "state"), first.store)
    again.open(*parts(record.url))[1].close()
    assert (tmp_path / "state" / "link-secret").stat().st_mode & 0o777 == 0o600
    first.store.close()


async def test_a_url_that_cannot_be_opened_keeps_the_file_on_this_machine_and_says_why(
    tmp_path: Path,
) -> None:
    shelf = Shelf(tmp_path, "nosuch://bucket")
    record = await shelf.artifacts.store(RUN, "capture", shelf.file())
    assert shelf.artifacts.deliver() == 0
    assert "artifacts.url nosuch://bucket cannot be used" in shelf.store.audit.of_run(RUN)[-1].text
    with shelf.artifacts.open(*parts(record.url))[1] as file:
        assert file.read() == b"evidence"
    shelf.store.close()
