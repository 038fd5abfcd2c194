"""The tokens that the settings must name, checked before anything starts and without Slack's libraries."""

from bot.settings.model import Settings


class CannotStart(Exception):
    """The bot cannot start. The message says why and what to do."""


def check_tokens(settings: Settings) -> None:
    """Raise CannotStart if a token that the settings need is not set."""
    slack = settings.slack
    if not slack.bot_token.get_secret_value():
        raise CannotStart("slack.bot_token is not set: set GPU_ONCALL_SLACK__BOT_TOKEN (xoxb-...)")
    if slack.mode == "socket" and not slack.app_token.get_secret_value():
        raise CannotStart(
            "slack.app_token is not set: Socket Mode needs GPU_ONCALL_SLACK__APP_TOKEN (xapp-...)"
        )
