"""The `gpu-oncall` command: start the bot or the demonstration, check the settings, and run actions from a shell.

Each command imports what it needs when it runs, so that `--help` is fast and `triage` does not load Slack.
"""

import asyncio
import importlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bot.cli import fleet, workspace
from gpu_actions.registry import ACTION_NAMES, command_line, shell_verb

app = typer.Typer(
    name="gpu-oncall",
    help="An on-call teammate in Slack for multi-GPU serving hosts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
demo_app = typer.Typer(
    help="A whole incident on this machine: workspace, demonstration host and bot.", no_args_is_help=False
)
golden_app = typer.Typer(
    help="Golden prompts: record a tier's answers on a good day, and check it against them.",
    no_args_is_help=True,
)
audit_app = typer.Typer(
    help="The record of who did what: check that it is unchanged, and export it.", no_args_is_help=True
)
incident_app = typer.Typer(help="The report of an incident, without Slack.", no_args_is_help=True)
app.add_typer(golden_app, name="golden")
app.add_typer(incident_app, name="incident")
app.add_typer(audit_app, name="audit")
app.add_typer(demo_app, name="demo")
app.add_typer(workspace.app, name="workspace")
app.add_typer(fleet.app, name="fleet")

USAGE_ERROR = 2
PASS_THROUGH: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="settings file; else GPU_ONCALL_CONFIG, ./gpu-oncall.toml, /etc/gpu-oncall/"
    ),
]
StateOption = Annotated[Path, typer.Option("--state", help="folder of the demonstration")]
DEFAULT_DEMO_STATE = Path("var/demo")


def _settings(config: Path | None) -> Any:
    from bot.settings.load import SettingsError, load_settings
    from handlers import check_command_names

    try:
        settings = load_settings(config)
        check_command_names(settings.slack)
        return settings
    except SettingsError as error:
        for problem in error.problems:
            typer.echo(f"settings: {problem}", err=True)
        raise typer.Exit(USAGE_ERROR) from None


@app.command()
def up(
    config: ConfigOption = None,
    single: Annotated[
        bool, typer.Option("--single", help="bot and worker in one process, which ends and restarts as one")
    ] = False,
) -> None:
    """Run the bot and the worker of this host: two processes under one supervisor, each restarted alone."""
    settings = _settings(config)
    if single:
        from bot.app import serve

        raise typer.Exit(asyncio.run(serve(settings, role="all")))
    from bot.slack.tokens import CannotStart, check_tokens
    from bot.supervisor import become_supervisor
    from bot.web.service_notify import CANNOT_START

    try:
        check_tokens(settings)
    except CannotStart as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(CANNOT_START) from None
    become_supervisor(None if config is None else str(config), log_json=settings.log_json)


@app.command()
def bot(config: ConfigOption = None) -> None:
    """Run the bot alone. A worker on the same state folder, or the workers of a fleet (fleet.url), execute the runs."""
    from bot.app import serve

    raise typer.Exit(asyncio.run(serve(_settings(config))))


@app.command()
def worker(config: ConfigOption = None) -> None:
    """Run the worker of this host. It needs no Slack and opens no port; of a fleet (fleet.url), it dials PostgreSQL."""
    from bot.worker import serve_worker

    raise typer.Exit(asyncio.run(serve_worker(_settings(config))))


@app.command()
def doctor(config: ConfigOption = None, json_output: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Check everything that a plan would touch, before an incident needs it. Exit 1 if something is wrong."""
    from bot.cli.doctor import examine, render

    report = asyncio.run(examine(_settings(config)))
    typer.echo(report.model_dump_json(indent=1) if json_output else render(report))
    raise typer.Exit(0 if report.good else 1)


@app.command()
def manifest(
    config: ConfigOption = None,
    http: Annotated[
        str, typer.Option("--http", help="for HTTP mode: the public https address of the bot")
    ] = "",
) -> None:
    """Print the Slack app manifest for these settings."""
    from bot.slack.manifest import render
    from handlers import SLASH_COMMANDS

    typer.echo(render(_settings(config).slack, SLASH_COMMANDS, http_url=http), nl=False)


@app.command()
def mcp(
    config: ConfigOption = None,
    http: Annotated[
        bool, typer.Option("--http", help="serve on mcp.host and mcp.port instead of stdio")
    ] = False,
) -> None:
    """Serve what the bot knows to assistants (Model Context Protocol). Tools read; none changes a host."""
    from bot.cli.mcp_server import serve

    settings = _settings(config)
    if http and not settings.mcp.token.get_secret_value():
        typer.echo("mcp.token is not set: set GPU_ONCALL_MCP__TOKEN to a long random string", err=True)
        raise typer.Exit(USAGE_ERROR)
    raise typer.Exit(serve(settings, http=http))


@app.command()
def links(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="id of a run, for example fb-7k2m")],
    config: ConfigOption = None,
) -> None:
    """Print new links to the files of a run: those in its message expire after web.link_days."""
    from bot.cli.links import print_links

    raise typer.Exit(print_links(_settings(config), run_id))


HostOption = Annotated[
    str | None, typer.Option("--host", help="host name; default: the first one in the settings")
]
TierOption = Annotated[Literal["tp", "fallback"], typer.Option("--tier", help="which tier")]


@golden_app.command("record")
def golden_record(
    config: ConfigOption = None,
    host: HostOption = None,
    tier: TierOption = "tp",
    repeats: Annotated[int, typer.Option(min=1, max=50, help="answers to each prompt at batch 1")] = 3,
    concurrency: Annotated[
        int, typer.Option(min=0, max=256, help="concurrent completions while the prompts are scored again")
    ] = 8,
) -> None:
    """Record a tier's answers while it is healthy, best while it is idle. Restore and triage compare with them."""
    from bot.cli.golden import record

    settings = _settings(config)
    raise typer.Exit(
        asyncio.run(record(settings, host=host, tier=tier, repeats=repeats, concurrency=concurrency))
    )


@app.command()
def runbook(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="the file; else `runbook` of the settings, else the terminal"),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Render the team's runbook from the plans as they are, with what was last run and drilled, and proposals."""
    from bot.cli.runbook import write_runbook

    raise typer.Exit(write_runbook(_settings(config), output))


@incident_app.command("report")
def incident_report(
    incident_id: Annotated[
        str, typer.Argument(metavar="INCIDENT", help="its id, for example inc-7k2m; empty: the newest")
    ] = "",
    config: ConfigOption = None,
    folder: Annotated[Path, typer.Option("--out", help="where to write it")] = Path(),
    local: Annotated[
        bool, typer.Option("--local", help="accepted for symmetry: this command never uses Slack")
    ] = False,
) -> None:
    """Write an incident's report as Markdown, HTML and JSON, from the record alone."""
    from bot.cli.incident import report

    raise typer.Exit(report(_settings(config), incident_id, folder))


@audit_app.command("verify")
def audit_verify(
    config: ConfigOption = None,
    expect: Annotated[
        str, typer.Option(help="a hash that an earlier check printed and that must still be there")
    ] = "",
) -> None:
    """Check the hash chain of the audit trail. Exit 0: intact; 1: an entry was changed, removed or inserted."""
    from bot.cli.audit import verify

    raise typer.Exit(verify(_settings(config), expected=expect))


@audit_app.command("export")
def audit_export(
    config: ConfigOption = None,
    days: Annotated[float, typer.Option(min=0, help="only the last N days; default: all")] = 0,
) -> None:
    """Print the audit trail as JSON lines, oldest entry first."""
    import time

    from bot.cli.audit import export

    since = time.time() - days * 86_400 if days else 0.0
    raise typer.Exit(export(_settings(config), since=since))


@golden_app.command("check")
def golden_check(config: ConfigOption = None, host: HostOption = None, tier: TierOption = "tp") -> None:
    """Compare a tier with its golden prompts. Exit 0: it matches; 1: it differs; 4: unknown."""
    from bot.cli.golden import check

    raise typer.Exit(asyncio.run(check(_settings(config), host=host, tier=tier)))


def _pass_through(name: str, summary: str, module: str) -> None:
    """Register an action whose own command line, the `main` of `module`, takes the arguments."""

    @app.command(name, context_settings=PASS_THROUGH, help=summary, add_help_option=False)
    def command(context: typer.Context) -> None:
        raise typer.Exit(importlib.import_module(module).main(list(context.args)))


def _local_action(name: str, summary: str) -> None:
    @app.command(name, help=summary)
    def command(
        verb: Annotated[
            str, typer.Argument(help="plan or start (forensics also: verify FILE); with --local: start")
        ] = "",
        options: Annotated[
            list[str] | None, typer.Argument(help="options of the action as key=value")
        ] = None,
        config: ConfigOption = None,
        host: Annotated[
            str | None, typer.Option(help="host name; default: the first one in the settings")
        ] = None,
        local: Annotated[
            bool, typer.Option("--local", help="run it here and now, without Slack and its approvals")
        ] = False,
        json_output: Annotated[
            bool, typer.Option("--json", help="print the plan or the outcome as JSON")
        ] = False,
    ) -> None:
        from bot.cli.local import run_local

        verb = verb or ("start" if local else "plan")
        if module := shell_verb(name, verb):
            raise typer.Exit(importlib.import_module(module).main(options or []))
        settings = _settings(config)
        raise typer.Exit(
            asyncio.run(
                run_local(
                    settings,
                    action=name,
                    verb=verb,
                    options=options or [],
                    host=host,
                    local=local,
                    as_json=json_output,
                )
            )
        )


def _register_actions() -> None:
    """Register every action; the docstring of its folder or file is its help, and it is not imported further before it runs."""
    for name in ACTION_NAMES:
        summary = importlib.import_module(f"gpu_actions.{name}").__doc__ or ""
        if module := command_line(name):
            _pass_through(name, summary, module)
        else:
            _local_action(name, summary)


_register_actions()


@demo_app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    state: StateOption = DEFAULT_DEMO_STATE,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="start anew instead of continuing the last incident")
    ] = False,
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="take free ports instead of 8000, 8800, ...")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="shorter load tests and traffic stages")] = False,
    monitors: Annotated[bool, typer.Option(help="let the monitors alert within seconds of a fault")] = True,
    drills: Annotated[
        bool, typer.Option("--drills", help="drill by schedule, on a clock whose week is six minutes long")
    ] = False,
) -> None:
    """Start the demonstration, or continue it where it ended. Ctrl-C stops it and leaves no process behind."""
    if context.invoked_subcommand is None:
        from demo.host.run import demonstrate

        raise typer.Exit(
            asyncio.run(
                demonstrate(
                    state, fresh=fresh, free_ports=free_ports, quick=quick, monitors=monitors, drills=drills
                )
            )
        )


@demo_app.command("break")
def demo_break(
    fault: Annotated[str, typer.Argument(help="frozen-rank or dead-rank")] = "frozen-rank",
    state: StateOption = DEFAULT_DEMO_STATE,
) -> None:
    """Inject a real fault into the running demonstration."""
    _panel(state, fault)


@demo_app.command("mend")
def demo_mend(state: StateOption = DEFAULT_DEMO_STATE) -> None:
    """Remove the fault."""
    _panel(state, "mend")


def _panel(state: Path, button: str) -> None:
    from demo.host.panel import press

    try:
        typer.echo(asyncio.run(press(state, button)))
    except (OSError, ValueError) as error:
        typer.echo(f"demo: {error}", err=True)
        raise typer.Exit(USAGE_ERROR) from None


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
