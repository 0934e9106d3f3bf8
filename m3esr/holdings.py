"""What lies in the models folder: which weights, which files, how much, and how they leave it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from models import receipts
from models.catalogue import is_there
from models.sources import FILE, SOURCES, Part, Source


def installed(root: Path) -> list[Source]:
    """The sources of which something is in the models folder, also the half of a download."""
    return [
        source for source in SOURCES.values() if any(True for _ in files(root, source)) or _is_any_there(root, source)
    ]


def _is_any_there(root: Path, source: Source) -> bool:
    return any(is_there(root / source.folder, part) for part in source.parts)


def files(root: Path, source: Source) -> Iterator[Path]:
    """All files of a source's parts, partial ones included, receipts not."""
    folder = root / source.folder
    for part in source.parts:
        place = folder / part.path
        if part.kind == FILE:
            found = [place, *place.parent.glob(f".{place.name}.*.partial")]
        else:
            found = list(place.iterdir()) if place.is_dir() else []
        yield from (path for path in found if path.is_file() and path.name != receipts.NAME)


def records(folder: Path, source: Source) -> dict[str, receipts.FileRecord]:
    """What the receipt says of a source's files (several sources may share the folder of a repository)."""
    return {
        path: record
        for path, record in receipts.read(folder).items()
        if any(_is_of(path, part) for part in source.parts)
    }


def _is_of(path: str, part: Part) -> bool:
    return path == part.path if part.kind == FILE else bool(receipts.is_under(path, part.path))


def remove(root: Path, source: Source) -> None:
    """Delete a source's files, their entries in the receipt, and the folders that this leaves empty."""
    folder = root / source.folder
    gone = set(records(folder, source))
    left = {path: record for path, record in receipts.read(folder).items() if path not in gone}
    for path in list(files(root, source)):
        path.unlink()
    if left:
        receipts.write(folder, left, **receipts.told(folder))
    else:
        (folder / receipts.NAME).unlink(missing_ok=True)
    places = [folder / part.path for part in source.parts]
    for place in sorted(places, key=lambda path: -len(path.parts)):
        while place != root and root in place.parents:
            if place.is_dir():
                if any(place.iterdir()):
                    break
                place.rmdir()
            place = place.parent


def free_bytes(root: Path) -> int:
    """Free space where the models folder is or will be made."""
    place = root
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def tell_size(num_bytes: int) -> str:
    """Bytes as people read them: 6.6 GB, 4.9 MB, 1 kB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{max(round(num_bytes / 1e3), 1)} kB"
