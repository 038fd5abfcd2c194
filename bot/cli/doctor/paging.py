"""Paging: its settings fit together, and its address answers. No page is sent."""

from urllib.parse import urlsplit

from bot.cli.doctor.links import is_local
from bot.settings.model import Settings
from bot.watch.pager_kinds import PAGERS
from gpu_actions.serving.setup_checks import SetupCheck, failed, ok, warning

LATE_S = 900


async def check_paging(settings: Settings) -> list[SetupCheck]:
    """Check that the on-call can be paged while Slack is away."""
    from aiohttp import ClientError, ClientSession, ClientTimeout

    from bot.watch.pages import address

    paging, key = settings.paging, settings.paging.key.get_secret_value()
    url = address(paging)
    if not url:
        if key or paging.kind == "pagerduty":
            what = "paging.url" if key else "paging.key (PagerDuty's routing key)"
            return [
                failed("paging", f"nobody is paged: {what} is not set", f"set {what}, or remove [paging]")
            ]
        fix = "set [paging] to reach the on-call when Slack does not"
        return [warning("paging", "off: while Slack is away nobody hears of an alert", fix)]
    problems = [text for text in (PAGERS[paging.kind].key_problem(key),) if text]
    if key and url.startswith("http://") and not is_local(url):
        problems.append("the key would travel unencrypted: use https")
    if paging.when == "slack_away" and paging.after_s > LATE_S:
        problems.append(f"a page goes out {paging.after_s / 60:.0f} minutes after the alert")
    shown = f"{urlsplit(url).scheme}://{urlsplit(url).netloc}"  # a webhook's path may be its secret
    try:
        async with (
            ClientSession(timeout=ClientTimeout(total=10), trust_env=True) as session,
            session.options(url, headers=PAGERS[paging.kind].headers(key)) as answer,
        ):
            status = answer.status
    except (ClientError, OSError, TimeoutError) as error:
        fix = "check paging.url, the network and its proxy"
        return [failed("paging", f"{shown} cannot be reached: {type(error).__name__}", fix)]
    if status >= 500 or status == 401:
        problems.append(f"it answers {status}")
    if problems:
        return [warning("paging", f"{shown} is there, but: {'; '.join(problems)}", "check [paging]")]
    return [ok("paging", f"{shown} answers; the on-call is paged with {paging.kind}, when: {paging.when}")]
