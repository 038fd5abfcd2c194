"""`auth.*`, `users.*`, `usergroups.*`, `apps.*`: who is who, and the app's way in."""

from demo.workspace.seed import SeedUser, commands_of_manifest
from demo.workspace.state import State
from demo.workspace.webapi.call import ApiCall, ApiError, Handler
from demo.workspace.webapi.conversations import page
from gpu_actions.models import JsonObject


async def auth_test(call: ApiCall) -> JsonObject:
    """Who the token belongs to."""
    seed = call.state.seed
    return {
        "url": call.state.base_url + "/",
        "team": seed.team_name,
        "team_id": seed.team_id,
        "user": seed.app.name,
        "user_id": seed.app.user_id,
        "bot_id": seed.app.bot_id,
        "is_enterprise_install": False,
    }


async def api_test(call: ApiCall) -> JsonObject:
    """Gives back what it was called with; with `error` it fails with that word."""
    if call.text("error"):
        raise ApiError(call.text("error"))
    return {"args": call.arguments}


async def connections_open(call: ApiCall) -> JsonObject:
    """The address of a Socket Mode connection, good for a minute."""
    address = call.state.base_url.replace("http://", "ws://", 1)
    return {
        "url": f"{address}/link/?ticket={call.socket_mode.new_ticket()}&app_id={call.state.seed.app.app_id}"
    }


async def manifest_update(call: ApiCall) -> JsonObject:
    """Register the slash commands of a manifest; from then on unknown commands are refused."""
    try:
        commands = commands_of_manifest(call.parsed("manifest"))
    except ValueError as error:
        raise ApiError("invalid_manifest", str(error)) from error
    call.state.declare_commands(commands)
    return {"app_id": call.state.seed.app.app_id, "permissions_updated": False}


def _user(state: State, user: SeedUser) -> JsonObject:
    return {
        "id": user.id,
        "team_id": state.seed.team_id,
        "name": user.name,
        "real_name": user.real_name,
        "deleted": False,
        "is_bot": False,
        "is_app_user": False,
        "tz": "Etc/UTC",
        "tz_offset": 0,
        "profile": _profile(user),
    }


def _profile(user: SeedUser) -> JsonObject:
    return {
        "real_name": user.real_name,
        "display_name": user.name,
        "title": user.title,
        "email": f"{user.name}@example.invalid",
        "status_text": "",
        "status_emoji": "",
    }


def _bot(state: State) -> JsonObject:
    app = state.seed.app
    return {
        "id": app.user_id,
        "team_id": state.seed.team_id,
        "name": app.name,
        "real_name": app.name,
        "deleted": False,
        "is_bot": True,
        "profile": {
            "real_name": app.name,
            "display_name": "",
            "bot_id": app.bot_id,
            "api_app_id": app.app_id,
        },
    }


async def users_info(call: ApiCall) -> JsonObject:
    """One person, or the bot."""
    wanted = call.required("user")
    if wanted == call.state.bot_user:
        return {"user": _bot(call.state)}
    person = call.state.people.get(wanted)
    if person is None:
        raise ApiError("user_not_found")
    return {"user": _user(call.state, person)}


async def users_list(call: ApiCall) -> JsonObject:
    """Everybody, the bot last."""
    people = [_user(call.state, person) for person in call.state.people.values()]
    return page(call, [*people, _bot(call.state)], "members")


async def users_profile_get(call: ApiCall) -> JsonObject:
    """One person's profile."""
    person = call.state.people.get(call.required("user"))
    if person is None:
        raise ApiError("user_not_found")
    return {"profile": _profile(person)}


async def users_conversations(call: ApiCall) -> JsonObject:
    """The channels the bot is in."""
    mine = [
        channel.as_slack(call.state.bot_user)
        for channel in call.state.channels.values()
        if call.state.bot_user in channel.members and not channel.is_im
    ]
    return page(call, mine, "channels")


async def usergroups_list(call: ApiCall) -> JsonObject:
    """All user groups."""
    include = call.flag("include_users")
    groups = []
    for group in call.state.seed.groups:
        body: JsonObject = {
            "id": group.id,
            "team_id": call.state.seed.team_id,
            "is_usergroup": True,
            "name": group.name,
            "handle": group.handle,
            "description": "",
            "date_delete": 0,
            "user_count": len(group.users),
        }
        groups.append(body | ({"users": list(group.users)} if include else {}))
    return {"usergroups": groups}


async def usergroups_users_list(call: ApiCall) -> JsonObject:
    """User ids of one group."""
    wanted = call.required("usergroup")
    group = next((entry for entry in call.state.seed.groups if entry.id == wanted), None)
    if group is None:
        raise ApiError("no_such_subteam")
    return {"users": list(group.users)}


METHODS: dict[str, Handler] = {
    "auth.test": auth_test,
    "api.test": api_test,
    "apps.connections.open": connections_open,
    "apps.manifest.update": manifest_update,
    "users.info": users_info,
    "users.list": users_list,
    "users.profile.get": users_profile_get,
    "users.conversations": users_conversations,
    "usergroups.list": usergroups_list,
    "usergroups.users.list": usergroups_users_list,
}
