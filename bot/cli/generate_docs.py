"""Generate the documents that are made from the code: `make docs`. A test checks that they are up to date."""

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def documents() -> dict[str, Callable[[], str]]:
    """Return, by path in the repository, the functions that generate the texts."""
    from bot.settings.model import SlackSettings
    from bot.settings.reference import settings_markdown
    from bot.slack.manifest import render
    from gpu_actions.fallback.ladder_document import ladder_markdown
    from gpu_actions.loadtest.result import schema_text
    from gpu_actions.triage.document import rules_markdown
    from handlers import SLASH_COMMANDS

    return {
        "docs/settings.md": settings_markdown,
        "docs/triage-rules.md": rules_markdown,
        "docs/ladder.md": ladder_markdown,
        "docs/loadtest.schema.json": schema_text,
        "manifest.yaml": lambda: render(SlackSettings(), SLASH_COMMANDS),
    }


def main() -> None:
    for path, make in documents().items():
        (ROOT / path).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
