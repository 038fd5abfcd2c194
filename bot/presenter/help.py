"""Help texts, built from the texts that each command declares beside its parser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bot.presenter.message import Lines, Message, Part, compose, footnote, section
from bot.presenter.mrkdwn import one_line
from bot.presenter.render_context import RenderContext


@dataclass(frozen=True, kw_only=True)
class CommandText:
    """What people read about a slash command.

    `name` is its key in `slack.commands` of the settings, `hint` Slack's usage hint; `usages` maps the words after the
    command's name to what they do; `task` is what people want when they need it, and groups the commands in the help.
    """

    name: str
    summary: str
    hint: str
    usages: Mapping[str, str] = field(default_factory=dict)
    task: str = "Keep the record"


def command_help(
    command: CommandText,
    context: RenderContext,
    *,
    hosts: Sequence[str],
    options: Mapping[str, str] | None = None,
) -> Message:
    """Return the help of one command; `options` maps the options of `start` and `plan` to what they mean."""
    parts: list[Part] = [section(f"*{context.command(command.name)}* {one_line(command.summary, 300)}")]
    parts.append(
        Lines(
            tuple(
                f"{context.command(command.name, usage)} - {one_line(text)}"
                for usage, text in command.usages.items()
            )
        )
    )
    if options:
        lines = tuple(f"`{one_line(name)}=` {one_line(text, 200)}" for name, text in options.items())
        parts.append(Lines(("*Options of* `start` *and* `plan`", *lines), noun="options", small=True))
    parts.append(footnote(_hosts(hosts)))
    return compose(f"{command.name}: {command.summary}", parts)


def overview(commands: Sequence[CommandText], context: RenderContext, *, hosts: Sequence[str]) -> Message:
    """Return everything the bot can do, one entry per command, and how to reach it in a thread."""
    return compose("gpu-oncall: what I can do", overview_parts(commands, context, hosts=hosts))


def overview_parts(
    commands: Sequence[CommandText], context: RenderContext, *, hosts: Sequence[str]
) -> list[Part]:
    tasks: dict[str, list[str]] = {}
    for command in commands:
        usages = " · ".join(usage for usage in command.usages if usage)
        line = f"{context.command(command.name)} {one_line(command.summary, 200)}\n      {one_line(usages)}"
        tasks.setdefault(command.task, []).append(line)
    parts: list[Part] = [Lines((f"*{task}*", *lines), noun="commands") for task, lines in tasks.items()]
    return [
        *parts,
        section(
            f"*Anywhere* mention me: {context.mention('status')}, {context.mention('approve RUN')}, "
            f"{context.mention('deny RUN why')}, or any command without its slash; alone with me no mention is needed. "
            f"{context.command('gpu', 'COMMAND ...')} reaches every command, {context.command('gpu', 'whoami')} says what "
            "you may do. Options are written `key=value`."
        ),
        footnote(_hosts(hosts)),
    ]


def _hosts(hosts: Sequence[str]) -> str:
    names = ", ".join(one_line(host) for host in hosts)
    return f"Hosts: {names}. If you name no host, I use {one_line(hosts[0])}." if hosts else ""
