"""The ``mixpeek-ray`` command."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from pydantic import ValidationError

from mixpeek_ray.cli import keys
from mixpeek_ray.core.settings import Settings, get_settings

app = typer.Typer(
    help="Run and manage a Mixpeek model platform.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys.app, name="keys")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once the platform runs.")] = False,
) -> None:
    """Start the platform on this machine and keep it running until Ctrl-C."""
    from mixpeek_ray.cli import up as run

    raise typer.Exit(run.up(_settings(), detach=detach))


@app.command()
def down() -> None:
    """Stop the platform that runs in this home."""
    from mixpeek_ray.cli.down import down as stop

    raise typer.Exit(stop(_settings()))


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show whether the platform runs and what it says of its health; exit with 1 unless it is well."""
    from mixpeek_ray.cli.status import platform_status

    report = platform_status(_settings())
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        typer.echo(report.describe())
    raise typer.Exit(0 if report.health == "OK" else 1)


def _settings() -> Settings:
    try:
        return get_settings()
    except ValidationError as error:
        for problem in error.errors():
            name = f"MIXPEEK_{'_'.join(str(part) for part in problem['loc']).upper()}"
            typer.echo(f"{name}={problem['input']!a} is not allowed: {problem['msg']}.", err=True)
        sys.exit(2)
