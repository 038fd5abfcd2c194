"""The Home tab, published each time a person opens it."""

from collections.abc import Mapping

from bot.presenter.home import home_view
from handlers.call import Call
from handlers.command import Command


async def publish(call: Call, commands: Mapping[str, Command]) -> None:
    """Publish the Home tab for the person who opened it."""
    services = call.services
    hosts = [
        (name, services.runs.latest(action="triage", host=name), services.incidents.active(name))
        for name in services.hosts
    ]
    view = home_view(hosts, services.runs.list(active_only=True), list(commands.values()), call.context)
    await call.client.views_publish(user_id=call.person.id, view=view)
