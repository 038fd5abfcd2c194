"""The fleet: the bot's key and the hosts' signs of life, or this host's enrolment and clock."""

import stat

from bot.hosts import AWAY_AFTER_S
from bot.settings.model import Settings
from gpu_actions.serving.setup_checks import SetupCheck, failed, ok, warning

CLOCK_LIMIT_S = 5.0
ENROL = "on the bot's machine: gpu-oncall fleet add HOST, and copy its files"


async def check_fleet(settings: Settings) -> list[SetupCheck]:
    """Check this side of the fleet. Nothing is checked on a host that is alone."""
    if not settings.fleet.url:
        return []
    from bot.fleet.postbox import Away

    try:
        return await (_bot(settings) if settings.fleet.is_bot else _worker(settings))
    except Away as error:
        problem = f"the database does not let this role in: {str(error).strip().splitlines()[-1]}"
        return [failed("fleet.url", problem, "check address, certificate and pg_hba.conf")]


async def _bot(settings: Settings) -> list[SetupCheck]:
    from bot.fleet.orders import Signer
    from bot.fleet.postbox import BotEnd

    key = settings.fleet.signing_key
    assert key is not None  # noqa: S101  (this is what makes it the bot of a fleet)
    try:
        public = Signer.load(key).public_key
        mode = stat.S_IMODE(key.stat().st_mode)
    except (OSError, ValueError) as error:
        return [failed("fleet.signing_key", f"cannot be read: {error}", "gpu-oncall fleet init")]
    checks = [ok("fleet.signing_key", f"its public key is {public}")]
    if mode & 0o077:
        checks = [
            failed("fleet.signing_key", f"{key} has mode {mode:o}: others can order too", f"chmod 600 {key}")
        ]
    box = BotEnd(settings.fleet.url)
    try:
        hosts = await box.hosts()
    finally:
        await box.close()
    checks.append(ok("fleet.url", f"the post box answers; {len(hosts)} hosts are enrolled"))
    for host in hosts:
        if host.age_s is None:
            checks.append(
                warning(f"fleet.{host.name}", "its worker never gave a sign of life", "start it there")
            )
        elif host.age_s > AWAY_AFTER_S:
            age = f"its worker's last sign of life is {host.age_s:.0f} s old"
            checks.append(failed(f"fleet.{host.name}", age, "start `gpu-oncall worker` there"))
        else:
            checks.append(ok(f"fleet.{host.name}", f"its worker is alive, {host.age_s:.0f} s ago"))
    return checks


async def _worker(settings: Settings) -> list[SetupCheck]:
    from bot.fleet.orders import check_public_key
    from bot.fleet.postbox import HostEnd

    name = settings.default_host.name
    checks = []
    for key in settings.fleet.bot_keys:
        try:
            check_public_key(key)
        except ValueError as error:
            checks.append(failed("fleet.bot_keys", f"{key[:12]}...: {error}", "copy it from fleet.toml"))
    box = HostEnd(settings.fleet.url, host=name)
    try:
        me = await box.enrolled_as()
        difference_s = await box.clock_difference_s()
    finally:
        await box.close()
    if me != name:
        whose = f"belongs to the host {me!r}" if me else "belongs to no enrolled host"
        checks.append(failed("fleet.url", f"its role {whose}, this is {name!r}", ENROL.replace("HOST", name)))
    else:
        checks.append(ok("fleet.url", f"the post box knows this host as {me}"))
    if abs(difference_s) > CLOCK_LIMIT_S:
        problem = (
            f"this clock differs by {difference_s:.0f} s from the database's: orders may count as expired"
        )
        checks.append(failed("fleet.clock", problem, "timedatectl set-ntp true"))
    else:
        checks.append(ok("fleet.clock", f"differs by {difference_s:.1f} s from the database's"))
    return checks
