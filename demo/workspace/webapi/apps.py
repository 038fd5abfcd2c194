"""`auth.test`, `api.test` and `apps.*`: the app's identity and its connection."""

from demo.workspace.manifest import manifest_commands
from demo.workspace.records import JsonObject
from demo.workspace.webapi.call import ApiCall, ApiError, api_method


@api_method("auth.test")
async def auth_test(call: ApiCall) -> JsonObject:
    """Say whom the token belongs to."""
    team = call.state.team
    return {
        "url": call.state.base_url + "/",
        "team": team.name,
        "team_id": team.id,
        "user": team.app.name,
        "user_id": team.app.user_id,
        "bot_id": team.app.bot_id,
        "is_enterprise_install": False,
    }


@api_method("api.test", tokens=())
async def api_test(call: ApiCall) -> JsonObject:
    """Echo the arguments; with `error`, fail with that code."""
    if call.text("error"):
        raise ApiError(call.text("error"))
    return {"args": call.arguments}


@api_method("apps.connections.open", tokens=("app",))
async def connections_open(call: ApiCall) -> JsonObject:
    """Return the URL of a Socket Mode connection, valid for a minute."""
    address = call.state.base_url.replace("http://", "ws://", 1)
    ticket = call.socket_mode.new_ticket()
    return {"url": f"{address}/link/?ticket={ticket}&app_id={call.state.team.app.app_id}"}


@api_method("apps.manifest.update", tokens=("bot", "app"))
async def manifest_update(call: ApiCall) -> JsonObject:
    """Register the slash commands of a manifest; other commands are refused from then on."""
    try:
        commands = manifest_commands(call.parsed("manifest"))
    except ValueError as error:
        raise ApiError("invalid_manifest", str(error)) from error
    call.state.declare_commands(commands)
    return {"app_id": call.state.team.app.app_id, "permissions_updated": False}
