"""Generated documents match the code, and the manifest covers what the code uses."""

import json
import re
from pathlib import Path

import pytest

from bot.cli.generate_docs import ROOT, documents
from bot.settings.model import SlackSettings
from bot.slack.manifest import ROOM_SCOPES, SCOPES, bot_scopes, manifest, render
from handlers import COMMANDS, SLASH_COMMANDS


@pytest.mark.parametrize("path", sorted(documents()))
def test_a_generated_document_is_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == documents()[path](), (
        f"run `make docs`: {path} is stale"
    )


def test_the_manifest_has_every_command_that_handlers_register() -> None:
    listed = {
        entry["command"] for entry in manifest(SlackSettings(), SLASH_COMMANDS)["features"]["slash_commands"]
    }
    assert listed == {f"/{name}" for name in (*COMMANDS, "gpu")}


def test_renamed_commands_are_renamed_in_the_manifest() -> None:
    text = render(SlackSettings(commands={"triage": "gpu-triage"}), SLASH_COMMANDS)
    assert '"/gpu-triage"' in text
    assert '"/triage"' not in text


def test_every_web_api_method_that_the_code_calls_has_its_scopes_in_the_manifest() -> None:
    called: set[str] = set()
    for folder in ("bot", "handlers"):
        for path in (ROOT / folder).rglob("*.py"):
            if "workspace" not in path.parts and "demo" not in path.parts:
                called |= set(
                    re.findall(r"client\.((?:[a-z]+_)+[A-Za-z0-9_]+)\(", path.read_text(encoding="utf-8"))
                )
    slack_methods = {name for name in called if name.split("_")[0] in METHOD_FAMILIES}
    assert slack_methods - set(SCOPES | ROOM_SCOPES) == set(), (
        "name their scopes in bot/slack/manifest.py: SCOPES"
    )
    assert {scope for method in slack_methods for scope in (SCOPES | ROOM_SCOPES)[method]} <= set(
        bot_scopes(rooms=True)
    )


METHOD_FAMILIES = {
    "auth",
    "chat",
    "conversations",
    "files",
    "usergroups",
    "users",
    "views",
    "reactions",
    "pins",
    "bookmarks",
}


def test_the_manifest_parses_as_yaml_with_the_same_content() -> None:
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(render(SlackSettings(), SLASH_COMMANDS)) == json.loads(
        json.dumps(manifest(SlackSettings(), SLASH_COMMANDS))
    )


def test_links_between_documents_point_to_existing_files() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                path = Path(document.parent, target)
                assert path.exists(), f"{document.name} links to {target}, which is not there"
