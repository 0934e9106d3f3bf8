"""`m3esr keys`: makes, lists and revokes the API keys, in the Redis of the service."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from m3esr.environment import read_settings
from m3esr.errors import UserError

if TYPE_CHECKING:
    from jobs import KeyStore

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)

KeyId = Annotated[str, typer.Argument(metavar="ID", help="As m3esr keys list shows it.")]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who or what it is for.")],
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, help="Instead of M3ESR_REQUESTS_PER_MINUTE; 0: no limit.")
    ] = None,
    megapixels_per_day: Annotated[
        int | None, typer.Option(min=0, help="Instead of M3ESR_MEGAPIXELS_PER_DAY; 0: no limit.")
    ] = None,
) -> None:
    """Make a key and print it, once."""
    with _key_store() as store:
        try:
            key, secret = store.create(
                name, requests_per_minute=requests_per_minute, megapixels_per_day=megapixels_per_day
            )
        except ValueError as error:
            raise UserError("a NAME has 1 to 100 characters and no space at either end") from error
    typer.echo(f"Key {key.id} for '{key.name}'. It is shown this once; only its hash is kept.", err=True)
    typer.echo(secret)


@app.command("list")
def list_keys() -> None:
    """List the keys; times are UTC."""
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "name", "created", "last used", "requests/min", "megapixels/day", "")
    with _key_store() as store:
        for key in store.list_keys():
            table.add_row(
                key.id,
                key.name,
                _moment(key.created_at),
                _moment(key.last_used_at),
                _limit(key.requests_per_minute),
                _limit(key.megapixels_per_day),
                f"revoked {_moment(key.revoked_at)}" if key.revoked_at else "",
            )
    Console(markup=False).print(table)


@app.command("revoke")
def revoke(key_id: KeyId) -> None:
    """Make a key open nothing any more, at once."""
    with _key_store() as store:
        if not store.revoke(key_id):
            raise UserError(f"there is no key '{key_id}'. See m3esr keys list.")
    typer.echo(f"Key {key_id} is revoked.")


@app.command("forget")
def forget(key_id: KeyId) -> None:
    """Take a revoked key off the list; with the last one the API asks for none again."""
    with _key_store() as store:
        if not store.forget(key_id):
            raise UserError(f"there is no revoked key '{key_id}'. See m3esr keys list.")
        is_configured = store.is_configured()
    typer.echo(f"Key {key_id} is forgotten." + ("" if is_configured else " There are no keys: the API asks for none."))


@contextmanager
def _key_store() -> "Iterator[KeyStore]":
    """The keys in the Redis that the service uses: that of a running `m3esr up`, unless one is named."""
    import os
    from pathlib import Path

    from jobs import REDIS_AWAY, KeyStore, connect
    from m3esr.database import find_running

    url = read_settings().redis_url
    if "M3ESR_REDIS_URL" not in os.environ:
        url = find_running(Path(os.environ.get("M3ESR_VAR", "var")) / "redis") or url
    redis = connect(url)
    try:
        yield KeyStore(redis)
    except REDIS_AWAY:
        raise UserError(
            "Redis does not answer. Set M3ESR_REDIS_URL to the one the service uses, or start m3esr up in this folder."
        ) from None
    finally:
        redis.close()


def _moment(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "never"


def _limit(limit: int | None) -> str:
    return "as set" if limit is None else str(limit) if limit else "none"
