"""`m3esr models`: lists, fetches, checks and removes the public weights of the large profiles."""

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3esr.environment import read_settings
from m3esr.errors import UserError

if TYPE_CHECKING:
    import httpx
    from rich.progress import Progress

    from m3esr.hub import Plan
    from m3esr.transfer import RemoteFile
    from models.receipts import FileRecord
    from models.sources import Source

app = typer.Typer(
    help="Get, check and remove the large profiles' weights.", no_args_is_help=True, rich_markup_mode=None
)

Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Profiles, groups or weights; see m3esr models list.")
]
SomeNames = Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Without any: all that are there.")]
Folder = Annotated[Path | None, typer.Option("--models-dir", help="Instead of M3ESR_MODELS_DIR.")]


@app.command("list")
def list_models(models_dir: Folder = None) -> None:
    """List the weights: what they are for, size, licence, and whether they are there."""
    from rich.console import Console
    from rich.table import Column, Table

    from m3esr.holdings import free_bytes, tell_size
    from m3esr.hub import lacking_parts
    from models.catalogue import GROUPS, PROFILES
    from models.sources import SOURCES

    root = _root(models_dir)
    table = Table(Column("name", no_wrap=True), "for", "size", "licence", "gate", "there")
    for source in SOURCES.values():
        uses = [name for name, members in (PROFILES | GROUPS).items() if source.name in members]
        lacking = len(lacking_parts(root, source))
        there = "yes" if not lacking else "no" if lacking == len(source.parts) else "in part"
        gate = "yes" if source.gate else ""
        size = tell_size(source.num_bytes)
        table.add_row(source.name, ", ".join(uses), size, _licence(source), gate, there)
    Console(markup=False).print(table)
    typer.echo(f"Models folder: {root} ({tell_size(free_bytes(root))} free). `compact` has its weights in the package.")


@app.command("pull")
def pull(
    names: Names,
    accept_license: Annotated[bool, typer.Option("--accept-license", help="Accept the licences shown.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask nobody; say what is missing.")] = False,
    models_dir: Folder = None,
) -> None:
    """Fetch weights after telling their sizes and licences; a broken-off download is taken up again."""
    from m3esr.hub import is_offline, lacking_parts, make_plans

    root = _root(models_dir)
    sources = [source for source in _find(names) if lacking_parts(root, source)]
    if not sources:
        typer.echo(f"All there, in {root}.")
        return
    if is_offline(offline):
        lacking = [
            f"{source.folder}/{part.path}".rstrip("/") for source in sources for part in lacking_parts(root, source)
        ]
        raise UserError(
            f"offline, and missing in {root}: {', '.join(lacking)}. Unset HF_HUB_OFFLINE, or copy the folder from a "
            "machine that has them (docs/weights.md)."
        )
    _tell_terms(sources)
    _accept(accept_license)
    plans = make_plans(root, sources)
    _check_space(root, plans)
    _fetch_all(root, plans)
    typer.echo(f"All there, in {root}.")


@app.command("verify")
def verify(
    names: SomeNames = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete damaged files, so that pull gets them anew.")
    ] = False,
    models_dir: Folder = None,
) -> None:
    """Check sizes and sums of what was fetched; needs no network."""
    from m3esr.holdings import installed, records
    from models import receipts

    root = _root(models_dir)
    told = [
        (source.folder, path, record)
        for source in _find(names or []) or installed(root)
        for path, record in records(root / source.folder, source).items()
    ]
    if not told:
        raise UserError(f"nothing in {root} was fetched by m3esr models pull, so there is nothing to compare with")
    faults: list[str] = []
    with _progress() as progress:
        for folder, path, record in told:
            bar = progress.add_task(path.rpartition("/")[2], total=record.num_bytes)
            fault = receipts.find_fault(root / folder / path, record, lambda num, bar=bar: progress.advance(bar, num))
            progress.remove_task(bar)
            if fault:
                faults.append(f"{folder}/{path}: {fault}")
                if delete:
                    (root / folder / path).unlink(missing_ok=True)
    for line in faults:
        typer.echo(line)
    if faults:
        todo = "Fetch them again with: m3esr models pull" if delete else "Run it with --delete, then m3esr models pull"
        raise UserError(f"{len(faults)} of {len(told)} files are not as they were fetched. {todo}.")
    typer.echo(f"{len(told)} files are as they were fetched.")


@app.command("rm")
def remove(
    names: Names,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    models_dir: Folder = None,
) -> None:
    """Remove weights; what another installed profile needs stays, unless it is named by its own name."""
    from m3esr import holdings
    from m3esr.holdings import tell_size
    from models.catalogue import PROFILES, find_sources, missing

    root = _root(models_dir)
    others = [name for name, members in PROFILES.items() if members and name not in names and not missing(root, name)]
    needed = {source.name for source in find_sources(others)} - set(names)
    sources = [source for source in _find(names) if source in holdings.installed(root)]
    kept = [source for source in sources if source.name in needed]
    sources = [source for source in sources if source.name not in needed]
    if kept:
        typer.echo(f"Kept for {', '.join(others)}: {', '.join(source.name for source in kept)}.", err=True)
    if not sources:
        raise UserError(f"there is nothing of {', '.join(names)} to remove in {root}")
    size = sum(path.stat().st_size for source in sources for path in holdings.files(root, source))
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("removing needs a word: run it with --yes")
        typer.confirm(
            f"Remove {', '.join(source.name for source in sources)} ({tell_size(size)}) from {root}?", abort=True
        )
    for source in sources:
        holdings.remove(root, source)
    typer.echo(f"Removed {', '.join(source.name for source in sources)}: {tell_size(size)}.")


def _root(models_dir: Path | None) -> Path:
    root = (models_dir or read_settings().models_dir).expanduser()
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is not a folder. Set M3ESR_MODELS_DIR to the folder of the weights.")
    return root


def _find(names: Iterable[str]) -> "list[Source]":
    from models.catalogue import GROUPS, PROFILES, find_sources
    from models.sources import SOURCES

    try:
        sources: list[Source] = find_sources(names)
        return sources
    except KeyError as error:
        known = ", ".join((*PROFILES, *GROUPS, *SOURCES))
        raise UserError(f"there are no weights named '{error.args[0]}'. There are: {known}") from error


def _tell_terms(sources: "list[Source]") -> None:
    from m3esr.holdings import tell_size

    for source in sources:
        typer.echo(f"{source.name}: {source.title}, {tell_size(source.num_bytes)}", err=True)
        note = f"; {source.terms.note}" if source.terms.note else ""
        typer.echo(f"    {_licence(source)}{note}\n    {source.terms.url}", err=True)
        if source.gate:
            typer.echo(f"    gated: {source.gate}", err=True)
    total = sum(source.num_bytes for source in sources)
    typer.echo(f"{tell_size(total)} in all. Each comes from its own authors under its own licence.", err=True)


def _licence(source: "Source") -> str:
    terms = source.terms
    return terms.name if terms.is_commercial_use_allowed else f"{terms.name}: NO COMMERCIAL USE"


def _accept(is_accepted: bool) -> None:
    if is_accepted:
        return
    if not sys.stdin.isatty():
        raise UserError("the licences above need to be accepted: read them, then add --accept-license")
    typer.confirm("Do you accept these licences?", abort=True, err=True)


def _check_space(root: Path, plans: "list[Plan]") -> None:
    from m3esr.holdings import free_bytes, tell_size

    needed, free = sum(plan.bytes_left(root) for plan in plans), free_bytes(root)
    if needed > free:
        raise UserError(
            f"{tell_size(needed)} are needed and {tell_size(free)} are free in {root}. Free some, or name another "
            "folder in M3ESR_MODELS_DIR."
        )


def _fetch_all(root: Path, plans: "list[Plan]") -> None:
    import httpx

    from models import receipts

    timeout = httpx.Timeout(30, pool=None)
    with httpx.Client(follow_redirects=True, timeout=timeout) as client, _progress() as progress:
        for plan in plans:
            folder = root / plan.source.folder
            wanted = receipts.read(folder)
            for file in plan.files:  # before the first byte: what is half there is known as such
                wanted[file.path] = receipts.FileRecord(file.num_bytes, "", file.git_sha1)
            told = {
                "commit": plan.commit,
                "licence": plan.source.terms.name,
                "accepted": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            receipts.write(folder, wanted, **told)
            for file in plan.files:
                wanted[file.path] = _fetch_one(client, file, folder, progress)
                receipts.write(folder, wanted, **told)


def _fetch_one(client: "httpx.Client", file: "RemoteFile", folder: Path, progress: "Progress") -> "FileRecord":
    from m3esr.transfer import fetch

    bar = progress.add_task(file.path.rpartition("/")[2], total=file.num_bytes)
    return fetch(client, file, folder, lambda num: progress.advance(bar, num))


def _progress() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
