"""The manifest of HTTP mode names the address wherever Slack needs it."""

from bot.settings.model import SlackSettings
from bot.slack.manifest import manifest
from handlers import SLASH_COMMANDS


def test_the_manifest_of_http_mode_has_the_address_in_every_place_that_slack_needs() -> None:
    made = manifest(SlackSettings(), SLASH_COMMANDS, http_url="https://bot.example/")
    url = "https://bot.example/slack/events"
    assert {command["url"] for command in made["features"]["slash_commands"]} == {url}
    settings = made["settings"]
    assert settings["event_subscriptions"]["request_url"] == settings["interactivity"]["request_url"] == url
    assert settings["socket_mode_enabled"] is False
    assert "url" not in str(manifest(SlackSettings(), SLASH_COMMANDS))
