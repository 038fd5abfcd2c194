"""`gpu-oncall workspace say|press|read|faults`: drive the local workspace from a terminal."""

import asyncio
from typing import Annotated

import typer

app = typer.Typer(help="Drive the local workspace from a terminal, as a chosen user.", no_args_is_help=True)

UrlOption = Annotated[str, typer.Option("--url", help="address of the workspace")]
UserOption = Annotated[str, typer.Option("--user", help="who does it: oncall, lead or viewer")]
ChannelOption = Annotated[str, typer.Option("--channel", help="channel name")]
DEFAULT_WORKSPACE = "http://127.0.0.1:8800"


@app.command("say")
def say(
    text: Annotated[str, typer.Argument(help="a message, or a slash command")],
    user: UserOption = "oncall",
    channel: ChannelOption = "incidents",
    thread: Annotated[str | None, typer.Option(help="ts of a message: answer in its thread")] = None,
    url: UrlOption = DEFAULT_WORKSPACE,
) -> None:
    """Write a message or run a slash command."""
    from demo.workspace import terminal

    raise typer.Exit(asyncio.run(terminal.say(url, user=user, channel=channel, text=text, thread=thread)))


@app.command("press")
def press(
    button: Annotated[str, typer.Argument(help="the button's text, or the last part of its action id")],
    user: UserOption = "oncall",
    run: Annotated[str | None, typer.Option(help="run id that the button belongs to")] = None,
    ts: Annotated[str | None, typer.Option(help="ts of the message with the button")] = None,
    channel: Annotated[str | None, typer.Option(help="look only in this channel")] = None,
    url: UrlOption = DEFAULT_WORKSPACE,
) -> None:
    """Press a button."""
    from demo.workspace import terminal

    raise typer.Exit(
        asyncio.run(terminal.press(url, user=user, button=button, run=run, ts=ts, channel=channel))
    )


@app.command("react")
def react(
    name: Annotated[str, typer.Argument(help="the reaction, such as memo")],
    ts: Annotated[str, typer.Option(help="ts of the message")],
    user: UserOption = "oncall",
    channel: ChannelOption = "incidents",
    url: UrlOption = DEFAULT_WORKSPACE,
) -> None:
    """Put a reaction on a message."""
    from demo.workspace import terminal

    raise typer.Exit(asyncio.run(terminal.react(url, user=user, channel=channel, ts=ts, name=name)))


@app.command("faults")
def faults(
    switches: Annotated[
        list[str] | None, typer.Argument(help="deaf, error=chat.update:503, ...; off mends all")
    ] = None,
    url: UrlOption = DEFAULT_WORKSPACE,
) -> None:
    """Give Slack a bad day: switch faults on, or off. Without a switch, say which are on."""
    from demo.workspace import terminal

    raise typer.Exit(asyncio.run(terminal.faults(url, switches=switches or [])))


@app.command("read")
def read(
    channel: ChannelOption = "incidents",
    user: Annotated[str | None, typer.Option("--user", help="only what this user sees")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="messages as JSON")] = False,
    url: UrlOption = DEFAULT_WORKSPACE,
) -> None:
    """Show the messages of a channel with their threads, buttons and files."""
    from demo.workspace import terminal

    raise typer.Exit(asyncio.run(terminal.read(url, channel=channel, user=user, as_json=json_output)))
