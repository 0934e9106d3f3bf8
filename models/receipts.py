"""What was fetched into the folder of a repository: files, sizes, sums, licence. Written before the first byte.

The receipt is ROOT/<owner>/<repository>/.m3esr.json. It tells a half-fetched part from a whole one, and lets
`m3esr models verify` check files without asking anybody, also on a machine that has no way out.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = ".m3esr.json"
CHUNK = 1 << 22  # bytes read at a time when a sum is taken


class ReceiptError(OSError):
    """A receipt that is none; the message says what to do."""


@dataclass(frozen=True)
class FileRecord:
    """One file. sha256, git_sha1: what the hub lists, the first for large files, the second for small ones; ""
    unknown.
    """

    num_bytes: int
    sha256: str = ""
    git_sha1: str = ""


def read(folder: Path) -> dict[str, FileRecord]:
    """Path in the repository -> record. Raises ReceiptError for a file that is no receipt."""
    path = folder / NAME
    if not path.is_file():
        return {}
    try:
        return {name: FileRecord(**record) for name, record in json.loads(path.read_text())["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReceiptError(f"{path} cannot be read. Delete it and fetch the weights again.") from error


def write(folder: Path, files: dict[str, FileRecord], **told: str) -> None:
    """Replace the receipt. told: what a person may want to know later (licence, accepted, commit)."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**told, "files": {name: asdict(record) for name, record in sorted(files.items())}}
    partial = folder / f"{NAME}.partial"
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, folder / NAME)


def told(folder: Path) -> dict[str, str]:
    """The receipt's other entries."""
    path = folder / NAME
    return (
        {key: value for key, value in json.loads(path.read_text()).items() if key != "files"} if path.exists() else {}
    )


def is_whole(folder: Path, prefix: str) -> bool:
    """Whether every file that was to be fetched under a path is there. True where nothing was fetched."""
    return all((folder / name).is_file() for name in read(folder) if name == prefix or is_under(name, prefix))


def is_under(name: str, prefix: str) -> bool:
    """Whether a path lies in the folder `prefix`; "" is the folder of the repository."""
    return not prefix or name.startswith(f"{prefix}/")


def file_sha256(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """The sum of a file. on_bytes: called with the bytes read since the last call."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()


def file_git_sha1(path: Path) -> str:
    """The sum under which git, and so the hub, knows a small file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def find_fault(path: Path, record: FileRecord, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """What is wrong with a fetched file, in a few words; "" for nothing."""
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != record.num_bytes:
        return f"{size} bytes instead of {record.num_bytes}"
    if record.sha256 and file_sha256(path, on_bytes) != record.sha256:
        return "another sha256"
    if record.git_sha1 and not record.sha256 and file_git_sha1(path) != record.git_sha1:
        return "another git sum"
    return ""
