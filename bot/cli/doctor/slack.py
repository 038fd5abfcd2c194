"""Slack: the tokens, the granted scopes, and the incident channel."""

from typing import TYPE_CHECKING

from bot.settings.model import Settings
from gpu_actions.serving.setup_checks import SetupCheck, failed, ok, warning

if TYPE_CHECKING:
    from slack_sdk.web.async_client import AsyncWebClient


async def check_slack(settings: Settings) -> list[SetupCheck]:
    """Check that Slack accepts the token, has granted every scope, and that the bot is in the incident channel."""
    from slack_sdk.errors import SlackApiError
    from slack_sdk.web.async_client import AsyncWebClient

    slack = settings.slack
    token = slack.bot_token.get_secret_value()
    if not token:
        fix = "set slack.bot_token or GPU_ONCALL_SLACK__BOT_TOKEN (xoxb-...)"
        return [failed("slack.bot_token", "is not set", fix)]
    if slack.mode == "socket" and not slack.app_token.get_secret_value():
        fix = "Socket Mode needs it: GPU_ONCALL_SLACK__APP_TOKEN (xapp-...)"
        return [failed("slack.app_token", "is not set", fix)]
    client = AsyncWebClient(token=token, base_url=slack.api_url, timeout=10)
    try:
        answer = await client.auth_test()
    except SlackApiError as error:
        problem = f"refuses the bot token: {error.response['error']}"
        return [failed("slack", problem, "install the app again, copy its token")]
    except (OSError, TimeoutError) as error:
        problem = f"cannot be reached at {slack.api_url}: {error}"
        return [failed("slack", problem, "check the network and api_url")]
    return [
        ok("slack", f"reached as {answer['user']} in {answer['team']}"),
        _scopes(answer.headers.get("x-oauth-scopes", "")),
        await _channel(slack.incident_channel, client),
    ]


def _scopes(granted: str) -> SetupCheck:
    from bot.slack.manifest import bot_scopes

    if not granted:
        return warning(
            "slack.scopes", "Slack did not say which scopes the token has", "compare with the manifest"
        )
    missing = sorted(set(bot_scopes()) - {scope.strip() for scope in granted.split(",")})
    if missing:
        fix = "apply `gpu-oncall manifest` to the app and install it again"
        return failed("slack.scopes", f"missing: {', '.join(missing)}", fix)
    return ok("slack.scopes", f"all {len(bot_scopes())} granted")


async def _channel(name: str, client: "AsyncWebClient") -> SetupCheck:
    """Check the incident channel, where alerts are posted."""
    from slack_sdk.errors import SlackApiError

    from bot.slack.channels import Channels, ChannelUnknown

    try:
        channel = (await client.conversations_info(channel=await Channels(client).id_of(name)))["channel"]
    except ChannelUnknown as error:
        return failed("slack.incident_channel", str(error), "create it, then /invite the bot")
    except (SlackApiError, OSError, TimeoutError) as error:
        return warning("slack.incident_channel", f"#{name} cannot be looked up: {error}", "check the scopes")
    if not channel.get("is_member"):
        return failed(
            "slack.incident_channel", f"I am not in #{name}", f"write /invite @gpu-oncall in #{name}"
        )
    return ok("slack.incident_channel", f"#{name} exists, and I am in it")
