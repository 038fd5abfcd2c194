"""Help texts: what each command does, with its exact words, built from the commands' own descriptions.

A usage stands once, beside the code that parses it, so that help and parser cannot differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bot.presenter.message import Lines, Message, Part, compose, context, section
from bot.presenter.mrkdwn import one_line
from bot.presenter.view import View


@dataclass(frozen=True)
class SubcommandHelp:
    """One way to use a command: `usage` is what stands behind the command's name."""

    usage: str
    text: str


@dataclass(frozen=True)
class CommandHelp:
    """One command: what it is for and its subcommands."""

    name: str
    summary: str
    subcommands: tuple[SubcommandHelp, ...]
    options: tuple[tuple[str, str], ...] = field(default=())


def command_help(command: CommandHelp, view: View, *, hosts: Sequence[str]) -> Message:
    """The help of one command."""
    parts: list[Part] = [section(f"*{view.command(command.name)}* {one_line(command.summary, 300)}")]
    parts.append(
        Lines(
            tuple(f"{view.command(command.name, s.usage)} - {one_line(s.text)}" for s in command.subcommands)
        )
    )
    if command.options:
        lines = tuple(f"`{one_line(name)}=` {one_line(text, 200)}" for name, text in command.options)
        parts.append(Lines(("*Options of* `start` *and* `plan`", *lines), noun="options", small=True))
    parts.append(context(_hosts(hosts)))
    return compose(f"{command.name}: {command.summary}", parts)


def overview(commands: Sequence[CommandHelp], view: View, *, hosts: Sequence[str]) -> Message:
    """What the bot can do, one line a command, and how to reach it in a thread."""
    return compose("gpu-oncall: what I can do", overview_parts(commands, view, hosts=hosts))


def overview_parts(commands: Sequence[CommandHelp], view: View, *, hosts: Sequence[str]) -> list[Part]:
    lines = []
    for command in commands:
        usages = " · ".join(s.usage for s in command.subcommands if s.usage)
        lines.append(
            f"{view.command(command.name)} {one_line(command.summary, 200)}"
            + (f"\n      {one_line(usages)}" if usages else "")
        )
    return [
        section("*gpu-oncall* carries a GPU serving host through an incident. What you can ask:"),
        Lines(tuple(lines), noun="commands"),
        section(
            f"In a thread: {view.mention('status')}, {view.mention('approve RUN')}, {view.mention('deny RUN why')}, "
            f"and every command without its slash. {view.command('gpu', 'COMMAND ...')} reaches all of them too."
        ),
        context(_hosts(hosts)),
    ]


def _hosts(hosts: Sequence[str]) -> str:
    return (
        f"Hosts: {', '.join(one_line(host) for host in hosts)}. Without a host I take {one_line(hosts[0])}."
        if hosts
        else ""
    )
