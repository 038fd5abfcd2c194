"""`/gpu hosts`: the state of every host, with the worker's last sign of life."""

import asyncio

from bot.presenter.hosts import HostRow, hosts_message
from bot.services import Services
from gpu_actions.loadtest.recent import tier_in_service
from gpu_actions.serving.interfaces import RouterError
from handlers.call import Call

VERDICT_AGE_S = 30 * 86_400.0
READ_S = 3.0


async def answer(call: Call) -> None:
    """Show the table of hosts."""
    services = call.services
    await services.runs.refresh_hosts()
    rows = await asyncio.gather(*(_row(services, name) for name in services.hosts))
    brake = await asyncio.to_thread(services.runs.brake_states)
    known_age_s = services.runs.hosts.known_age_s()
    await call.answer(hosts_message(rows, call.context, brake=brake, known_age_s=known_age_s))


async def _row(services: Services, name: str) -> HostRow:
    found = await asyncio.to_thread(services.store.last_verdict, name, max_age_s=VERDICT_AGE_S)
    active = await asyncio.to_thread(services.store.list, host=name, active_only=True)
    verdict, age_s = found or (None, 0.0)
    sign = services.runs.hosts.sign(name)
    if sign is None:  # the worker shares this machine
        alive = await asyncio.to_thread(services.runs.engine.has_worker)
        tier, sign_age_s, version, difference_s = await _tier(services, name), 0.0 if alive else None, "", 0.0
    else:
        tier, sign_age_s = str(sign.body.get("tier") or ""), sign.age_s
        version = str(sign.body.get("version") or "")
        difference_s = _number(sign.body.get("clock_difference_s"))
    return HostRow(
        name=name,
        labels={} if sign is None else sign.labels,
        tier=tier,
        verdict=verdict,
        verdict_age_s=age_s,
        sign_age_s=sign_age_s,
        version=version,
        clock_difference_s=difference_s,
        incident=services.incidents.active(name),
        active=tuple(run.id for run in active),
    )


async def _tier(services: Services, name: str) -> str:
    try:
        async with asyncio.timeout(READ_S):
            return await tier_in_service(services.runs.hosts.get(name)) or ""
    except (OSError, TimeoutError, RouterError):
        return ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
