"""Slack: the tokens, the granted scopes, and the incident channel."""

from typing import TYPE_CHECKING

from bot.settings.model import Settings
from gpu_actions.serving.setup_checks import SetupCheck, failed, ok, warning

if TYPE_CHECKING:
    from slack_sdk.web.async_client import AsyncWebClient


async def check_slack(settings: Settings) -> list[SetupCheck]:
    """Check that Slack accepts the token, has granted every scope, and that the bot is in the incident channel."""
    from aiohttp import ClientError
    from slack_sdk.errors import SlackApiError
    from slack_sdk.web.async_client import AsyncWebClient

    from bot.slack.identity import TOKEN_REFUSED

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
        code = error.response.get("error") or error.response.status_code
        if code not in TOKEN_REFUSED:
            return [failed("slack", f"answers auth.test with {code}", "try again; see status.slack.com")]
        return [failed("slack", f"refuses the bot token: {code}", "install the app again, copy its token")]
    except (ClientError, OSError, TimeoutError) as error:
        problem = f"cannot be reached at {slack.api_url}: {error}"
        return [failed("slack", problem, "check the network and api_url")]
    return [
        *(
            [await _app_token(slack.app_token.get_secret_value(), slack.api_url)]
            if slack.mode == "socket"
            else []
        ),
        ok("slack", f"reached as {answer['user']} in {answer['team']}"),
        _scopes(answer.headers.get("x-oauth-scopes", ""), rooms=slack.incident_place == "channel"),
        await _channel(slack.incident_channel, client),
    ]


async def _app_token(token: str, api_url: str) -> SetupCheck:
    """Check that Slack opens a socket for the app token. The address is thrown away, so no event goes to it."""
    from aiohttp import ClientError
    from slack_sdk.errors import SlackApiError
    from slack_sdk.web.async_client import AsyncWebClient

    try:
        await AsyncWebClient(base_url=api_url, timeout=10).apps_connections_open(app_token=token)
    except SlackApiError as error:
        fix = "make an app-level token with connections:write and set GPU_ONCALL_SLACK__APP_TOKEN (xapp-...)"
        return failed("slack.app_token", f"Slack refuses it: {error.response.get('error')}", fix)
    except (ClientError, OSError, TimeoutError) as error:
        return warning("slack.app_token", f"could not be tried: {error!r}", "try again")
    return ok("slack.app_token", "Slack opens a socket for it")


def _scopes(granted: str, *, rooms: bool) -> SetupCheck:
    from bot.slack.manifest import bot_scopes

    if not granted:
        return warning(
            "slack.scopes", "Slack did not say which scopes the token has", "compare with the manifest"
        )
    missing = sorted(set(bot_scopes(rooms=rooms)) - {scope.strip() for scope in granted.split(",")})
    if missing:
        fix = "apply `gpu-oncall manifest` to the app and install it again"
        return failed("slack.scopes", f"missing: {', '.join(missing)}", fix)
    return ok("slack.scopes", f"all {len(bot_scopes(rooms=rooms))} granted")


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
