"""`gpu-oncall fleet`: make a fleet, enrol its hosts, list and revoke them. See docs/fleet.md."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Many hosts, one bot: enrol hosts, list and revoke them.", no_args_is_help=True)

AdminOption = Annotated[
    str,
    typer.Option(
        "--admin",
        envvar="GPU_ONCALL_FLEET_ADMIN",
        help="postgresql://... of an administrator of the database; used by this command only",
    ),
]
FolderOption = Annotated[
    Path, typer.Option("--folder", help="where the fleet's keys are kept, on the bot's machine")
]
HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="name of a serving host")]
DEFAULT_FOLDER = Path("/var/lib/gpu-oncall/fleet")


@contextmanager
def _explained() -> Iterator[None]:
    from bot.fleet.enrolment import CannotEnrol

    try:
        yield
    except CannotEnrol as error:
        typer.echo(f"fleet: {error}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(f"fleet: {error.filename or 'a file'} cannot be used: {error.strerror}", err=True)
        raise typer.Exit(1) from None


@app.command()
def init(
    admin: AdminOption,
    folder: FolderOption = DEFAULT_FOLDER,
    server_name: Annotated[
        str, typer.Option(help="also make a certificate for a PostgreSQL server of this name")
    ] = "",
) -> None:
    """Create keys, roles, tables and row-level security. May be repeated: what exists is kept or brought up to date."""
    from bot.fleet.enrolment import bot_url
    from bot.fleet.enrolment import init as make

    with _explained():
        kept = make(admin, folder, server_name=server_name)
    typer.echo("The fleet is ready. Settings of the bot, which has no [[hosts]] section:\n")
    typer.echo(f'[fleet]\nurl = "{bot_url(admin, kept)}"\nsigning_key = "{kept.signing_key}"\n')
    typer.echo(
        "PostgreSQL must ask for these certificates. In pg_hba.conf, above other lines for these roles:\n"
    )
    typer.echo("hostssl all oncall_bot,+oncall_worker all cert")
    typer.echo("host all oncall_bot,+oncall_worker all reject\n")
    typer.echo(
        f"In postgresql.conf: ssl = on, ssl_ca_file = '{kept.ca_certificate}' (a copy that it can read)"
    )
    if server_name:
        certificate, key = kept.of("server")
        typer.echo(f"and ssl_cert_file = '{certificate}', ssl_key_file = '{key}' (copies).")
    typer.echo("\nNext: gpu-oncall fleet add HOST")


@app.command()
def add(
    host: HostArgument,
    admin: AdminOption,
    folder: FolderOption = DEFAULT_FOLDER,
    label: Annotated[list[str] | None, typer.Option(help="name=value, for example pool=chat")] = None,
) -> None:
    """Enrol a host: a database role with its own certificate, and the settings to copy."""
    from bot.fleet.enrolment import WHERE_ON_THE_HOST
    from bot.fleet.enrolment import add as enrol

    with _explained():
        files = enrol(admin, folder, host, label or [])
    typer.echo(f"{host} is enrolled. Copy {files} to {host}:{WHERE_ON_THE_HOST}, then delete it here:")
    typer.echo("  client.key is the host's secret (mode 0600, owned by the worker's user)")
    typer.echo(f"  fleet.toml goes into the settings of {host}; then start `gpu-oncall worker` there")


@app.command()
def rotate(host: HostArgument, admin: AdminOption, folder: FolderOption = DEFAULT_FOLDER) -> None:
    """Make a new certificate for a host. The old one is valid until it expires."""
    from bot.fleet.enrolment import rotate as renew

    with _explained():
        files = renew(admin, folder, host)
    typer.echo(f"{host} has a new certificate in {files}: copy it, then restart the worker.")
    typer.echo(f"If the old key is in wrong hands: gpu-oncall fleet revoke {host}, then fleet add {host}.")


@app.command()
def revoke(host: HostArgument, admin: AdminOption) -> None:
    """Take a host out of the fleet: its role may not log in any more, and its connections end."""
    from bot.fleet.enrolment import revoke as take_out

    with _explained():
        ended = take_out(admin, host)
    typer.echo(f"{host} is revoked; {ended} of its connections were ended. What runs there goes on.")


@app.command("list")
def show(admin: AdminOption) -> None:
    """List the hosts with their labels and their worker's last sign of life."""
    from bot.fleet.enrolment import enrolled

    with _explained():
        rows = enrolled(admin)
    for row in rows:
        labels = " ".join(f"{name}={value}" for name, value in sorted(row["labels"].items()))
        age = "never" if row["age_s"] is None else f"{row['age_s']:.0f} s ago"
        state = "revoked" if row["revoked_at"] is not None else f"sign of life: {age}"
        typer.echo(f"{row['name']:<24} {state:<32} {row['version'] or '':<12} {labels}")
    if not rows:
        typer.echo("No host is enrolled: gpu-oncall fleet add HOST")
