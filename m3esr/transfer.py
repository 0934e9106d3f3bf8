"""One file from a server to the disk: resumed where it broke off, checked, and in its place only when it is whole."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

from m3esr.errors import UserError
from models import receipts
from models.catalogue import matches_sum

RETRIES = 5  # failures in a row without a byte between them
PAUSE_SECONDS = 1.0  # before the first of them, twice as long before each next
OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch. path: below the repository's folder; sha256 may be given by its ends; gate: what to do when
    the server refuses; num_bytes is exact where is_size_known.
    """

    path: str
    url: str
    num_bytes: int
    is_size_known: bool = True
    sha256: str = ""
    git_sha1: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    gate: str = ""

    def partial(self, folder: Path) -> Path:
        """Where the bytes lie until they are whole; named by the sum, so that two versions never mix."""
        target = folder / self.path
        key = (self.sha256 or self.git_sha1 or str(self.num_bytes))[:12].replace(".", "")
        return target.with_name(f".{target.name}.{key}.partial")

    def bytes_left(self, folder: Path) -> int:
        """What a pull has still to fetch."""
        partial = self.partial(folder)
        return max(self.num_bytes - (partial.stat().st_size if partial.is_file() else 0), 0)


def fetch(client: httpx.Client, remote: RemoteFile, folder: Path, on_bytes: OnBytes) -> receipts.FileRecord:
    """Fetch a file into the folder of its repository.

    on_bytes: called with bytes gained, negative when the server makes us start again.
    Raises UserError when the server refuses, keeps failing or sends something else than was listed; what came so far
    is kept for the next try, except after a wrong sum.
    """
    target, partial = folder / remote.path, remote.partial(folder)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial) as file:
        on_bytes(file.seek(0, os.SEEK_END))
        _fill(client, remote, file, on_bytes)
        file.flush()
        record = _check(remote, partial)
        os.replace(partial, target)
    for stale in target.parent.glob(f".{target.name}.*.partial"):
        stale.unlink()
    return record


@contextmanager
def _locked(partial: Path) -> Iterator[IO[bytes]]:
    with partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{partial.name[1:]}: another m3esr models pull is fetching it") from None
        yield file


def _fill(client: httpx.Client, remote: RemoteFile, file: IO[bytes], on_bytes: OnBytes) -> None:
    failures = 0
    while not (remote.is_size_known and file.tell() == remote.num_bytes):
        before = file.tell()
        try:
            _stream(client, remote, file, on_bytes)
            return
        except (httpx.TransportError, _Busy) as error:
            failures = 1 if file.tell() > before else failures + 1
            if failures >= RETRIES:
                raise UserError(
                    f"{remote.path}: the transfer keeps breaking off ({error or type(error).__name__}). What came is "
                    "kept: run the same command again to go on."
                ) from error
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))


class _Busy(Exception):
    """The server asks to come back later."""


def _stream(client: httpx.Client, remote: RemoteFile, file: IO[bytes], on_bytes: OnBytes) -> None:
    have = file.tell()
    # without compression: the ranges count the file's own bytes
    headers = {**remote.headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", remote.url, headers=headers) as response:
        if response.status_code == 416 or (response.status_code == 206 and _start(response) != have):
            response = _restart(file, on_bytes, have, response)
        _refuse(response, remote)
        if response.status_code == 200 and have:
            _restart(file, on_bytes, have, response)
        for block in response.iter_bytes():  # as they come: what a chunk size gathers is lost when the line breaks
            file.write(block)
            on_bytes(len(block))
            if remote.is_size_known and file.tell() > remote.num_bytes:
                file.truncate(0)
                raise UserError(f"{remote.path}: the server sends more than the {remote.num_bytes} bytes it listed")


def _restart(file: IO[bytes], on_bytes: OnBytes, have: int, response: httpx.Response) -> httpx.Response:
    # the server cannot go on from where we are: from the beginning
    file.truncate(0)
    file.seek(0)
    on_bytes(-have)
    if response.status_code != 200:
        raise _Busy("the server cannot resume")
    return response


def _start(response: httpx.Response) -> int:
    told = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(told) if told.isdigit() else -1


def _refuse(response: httpx.Response, remote: RemoteFile) -> None:
    status = response.status_code
    if status in (401, 403):
        raise UserError(f"{remote.path}: the server refuses it ({status}). {remote.gate or LOGIN}")
    if status in (408, 429) or status >= 500:
        raise _Busy(f"status {status}")
    if status not in (200, 206):
        raise UserError(f"{remote.path}: {remote.url} answers {status}")


LOGIN = "Log in with: hf auth login, or set HF_TOKEN."


def _check(remote: RemoteFile, partial: Path) -> receipts.FileRecord:
    size = partial.stat().st_size
    if remote.is_size_known and size != remote.num_bytes:
        raise UserError(
            f"{remote.path}: only {size} of {remote.num_bytes} bytes came. Run the same command again to go on."
        )
    sha256 = receipts.file_sha256(partial)
    is_right = not remote.sha256 or matches_sum(remote.sha256, sha256)
    if is_right and remote.git_sha1 and not remote.sha256:
        is_right = receipts.file_git_sha1(partial) == remote.git_sha1
    if not is_right:
        partial.unlink()
        expected = remote.sha256 or f"git {remote.git_sha1}"
        raise UserError(
            f"{remote.path}: its sum is {sha256}, expected {expected}. The file was thrown away: try again, and "
            "if it stays so do not use it."
        )
    return receipts.FileRecord(size, sha256)
