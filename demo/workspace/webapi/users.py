"""`users.*` and `usergroups.*`: people and their groups."""

from demo.workspace.records import JsonObject
from demo.workspace.team import User
from demo.workspace.webapi.call import ApiCall, ApiError, api_method


def _profile(user: User) -> JsonObject:
    return {
        "real_name": user.real_name,
        "display_name": user.name,
        "title": user.title,
        "email": f"{user.name}@example.invalid",
        "status_text": "",
        "status_emoji": "",
    }


def _user(call: ApiCall, user_id: str) -> JsonObject:
    """Return the user object of a person or the bot. Raises ApiError `user_not_found`."""
    app = call.state.team.app
    common: JsonObject = {"id": user_id, "team_id": call.state.team.id, "deleted": False}
    if user_id == app.user_id:
        profile = {"real_name": app.name, "display_name": "", "bot_id": app.bot_id, "api_app_id": app.app_id}
        return common | {"name": app.name, "real_name": app.name, "is_bot": True, "profile": profile}
    person = _person(call, user_id)
    common |= {"team_id": call.state.team_of(person), "deleted": person.is_deactivated}
    if person.kind == "partner":
        common["is_stranger"] = False  # they share a channel with us
    else:
        common |= {"is_restricted": person.kind == "guest", "is_ultra_restricted": False}
    names = {"name": person.name, "real_name": person.real_name, "profile": _profile(person)}
    return common | names | {"is_bot": False, "is_app_user": False, "tz": "Etc/UTC", "tz_offset": 0}


def _person(call: ApiCall, user_id: str) -> User:
    person = call.state.people.get(user_id)
    if person is None:
        raise ApiError("user_not_found")
    return person


@api_method("users.info", "users:read")
async def info(call: ApiCall) -> JsonObject:
    return {"user": _user(call, call.required("user"))}


@api_method("users.list", "users:read")
async def list_(call: ApiCall) -> JsonObject:
    """List everyone, the bot last."""
    return call.page(
        [_user(call, user_id) for user_id in (*call.state.people, call.state.bot_user)], "members"
    )


@api_method("users.profile.get", "users.profile:read")
async def profile_get(call: ApiCall) -> JsonObject:
    return {"profile": _profile(_person(call, call.required("user")))}


@api_method("users.conversations", "channels:read", "groups:read", "im:read", "mpim:read")
async def conversations(call: ApiCall) -> JsonObject:
    """List the channels of which the bot is a member."""
    joined = [
        channel.as_slack(call.state.bot_user)
        for channel in call.state.channels.values()
        if call.state.bot_user in channel.members and not channel.is_im
    ]
    return call.page(joined, "channels")


@api_method("usergroups.list", "usergroups:read")
async def groups_list(call: ApiCall) -> JsonObject:
    groups: list[JsonObject] = []
    for group in call.state.team.groups:
        described = {"name": group.name, "handle": group.handle, "description": ""}
        body = {"id": group.id, "team_id": call.state.team.id, "is_usergroup": True, "date_delete": 0}
        users = {"users": list(group.users)} if call.flag("include_users") else {}
        groups.append(body | described | users | {"user_count": len(group.users)})
    return {"usergroups": groups}


@api_method("usergroups.users.list", "usergroups:read")
async def group_users_list(call: ApiCall) -> JsonObject:
    wanted = call.required("usergroup")
    group = next((entry for entry in call.state.team.groups if entry.id == wanted), None)
    if group is None:
        raise ApiError("no_such_subteam")
    return {"users": list(group.users)}
