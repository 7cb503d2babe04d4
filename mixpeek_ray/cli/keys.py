"""``mixpeek-ray keys``: API keys of the running platform, managed by whoever may read its home."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mixpeek_ray.cli import state
from mixpeek_ray.cli.environment import join_environment
from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.core.errors import MixpeekError
from mixpeek_ray.core.records import ApiKey, Role, Tier
from mixpeek_ray.core.settings import get_settings

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What the key is for.")] = "key",
    role: Annotated[Role, typer.Option(help="What the key may do.")] = Role.WRITE,
    organization: Annotated[
        str | None, typer.Option(help="Organisation, by name or id; default: the development one.")
    ] = None,
    tier: Annotated[
        Tier | None, typer.Option(help="Create the organisation, on this tier, if it is not there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it: the only time it is shown."""
    with _cluster():
        from mixpeek_ray.registry.admin import create_key

        created = create_key(organization=organization, name=name, role=role, tier=tier)
    if as_json:
        typer.echo(json.dumps({"key_id": created.record.key_id, "api_key": created.api_key}))
        return
    typer.echo(created.api_key)
    typer.echo(f"This is {created.record.key_id}; keep the key now, it is not shown again.", err=True)


@app.command(name="list")
def list_(as_json: AsJson = False) -> None:
    """List the keys, revoked ones included."""
    with _cluster():
        from mixpeek_ray.registry.admin import list_keys

        found = list_keys()
    if as_json:
        typer.echo(json.dumps([_as_dict(key) for key in found]))
        return
    table = Table("id", "name", "role", "organisation", "created", "revoked")
    for key in found:
        table.add_row(*(value or "" for value in _as_dict(key).values()))
    Console().print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, from `keys list`.")], as_json: AsJson = False
) -> None:
    """Revoke a key; every server refuses it within 5 seconds."""
    with _cluster():
        from mixpeek_ray.registry.admin import revoke_key

        revoked = revoke_key(key_id)
    typer.echo(json.dumps(_as_dict(revoked)) if as_json else f"Revoked {revoked.key_id}.")


def _as_dict(key: ApiKey) -> dict[str, str | None]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "role": key.role.value,
        "organization_id": key.organization_id,
        "created_at": key.created_at.isoformat(),
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
    }


@contextmanager
def _cluster() -> Iterator[None]:
    """Connect to the platform's Ray cluster; answers of the registry that are errors end the command."""
    paths = RunPaths.of(get_settings().home_path)
    running = state.read_state(paths)
    if running is None:
        typer.echo(f"No platform runs in {paths.home}: start it with `mixpeek-ray up`.", err=True)
        raise typer.Exit(1)
    # Ray reads these while it is imported.
    os.environ.update(join_environment(paths))
    import ray

    ray.init(address=running.gcs_address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    except MixpeekError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(1) from error
    finally:
        ray.shutdown()
