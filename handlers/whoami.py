"""`/gpu whoami`: what I may do and why."""

from bot.presenter.whoami import Rights, role_words, whoami
from handlers.call import Call


async def rights_of(call: Call) -> Rights:
    """Return the rights of the person who asks, as the checks themselves see them."""
    services, access = call.services, call.services.access
    refusals = await access.standing(call.person)
    holds = {
        str(role): await access.through(call.person, role)
        for role, refusal in refusals.items()
        if not refusal
    }
    needing = [spec.name for spec in services.actions.values() if spec.changes_host or spec.disturbs_service]
    gated = list(services.settings.access.approvals)
    return Rights(
        person=call.person,
        kind=await access.kind(call.person),
        no_reading=await access.reader_refusal(call.person, "start a triage"),
        holds=holds,
        lacks={str(role): refusal for role, refusal in refusals.items() if refusal},
        may=role_words(access.change_role, needing, gated),
    )


async def answer(call: Call) -> None:
    """Answer with the rights of the person who asks."""
    await call.answer(whoami(await rights_of(call), call.context))
