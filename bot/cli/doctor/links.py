"""Artifact links: the address in messages must lead somewhere from a phone."""

import ipaddress
from urllib.parse import urlsplit

from bot.settings.model import Settings
from gpu_actions.serving.setup_checks import SetupCheck, failed, ok


async def check_links(settings: Settings) -> list[SetupCheck]:
    """Check the base address of artifact links. The local workspace is on this machine itself."""
    return [judge_address(settings.public_url, settings.slack.api_url)]


def judge_address(public_url: str, api_url: str) -> SetupCheck:
    """Fail a loopback address, or one of no single host, unless Slack is the local workspace."""
    if is_local(public_url) and not is_local(api_url):
        fix = "set web.base_url to an address that people reach, such as https://gpu-oncall.example.com"
        return failed(
            "web.base_url", f"links to artifacts point to {public_url}, which no phone reaches", fix
        )
    return ok("web.base_url", f"links to artifacts point to {public_url}")


def is_local(url: str) -> bool:
    """Return True if an address is this machine's own."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
