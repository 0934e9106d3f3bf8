"""`m3esr up`: an embedded Redis, the API and a worker as children of one command, and a demo through them."""

import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from jobs import REDIS_AWAY, Settings, connect
from m3esr.children import ChildDied, Children
from m3esr.client import Client, ClientError, Job
from m3esr.database import free_port, start_database
from m3esr.demo import run_demo
from m3esr.errors import UserError, describe_os_error

if TYPE_CHECKING:
    from rich.console import Console

POLL_SECONDS = 0.2


class _Stop(BaseException):
    """A signal asked for the end; no handler of ordinary errors may swallow it."""


def up(*, port: int | None = None, demo: bool = True) -> int:
    """Start everything, run the demo, serve until Ctrl-C or SIGTERM, end every child within 10 s.

    The exit code: 0 after a signal, 1 when a child died. Raises UserError before anything is started.
    """
    from rich.console import Console

    settings = Settings()
    var = Path(os.environ.get("M3ESR_VAR", "var")).absolute()
    port = _check_port(settings.host, settings.port if port is None else port)
    console = Console(highlight=False)
    with _locked(var):
        children = Children(var / "log")
        previous = {number: signal.signal(number, _raise_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            _serve(console, children, settings, var, port, demo)
            return 0
        except _Stop:
            console.print("\nstopping…")
            return 0
        except (ChildDied, ClientError) as error:
            sys.stderr.write(f"m3esr: {error}\n")
            return 1
        finally:
            # From here on another Ctrl-C changes nothing: the children are being ended as fast as is safe.
            for number in previous:
                signal.signal(number, signal.SIG_IGN)
            children.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)


def _serve(
    console: "Console", children: Children, settings: Settings, var: Path, port: int, demo: bool
) -> None:
    env = {**os.environ, "M3ESR_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    env.setdefault("M3ESR_STORAGE_URL", str(var / "storage"))
    if "M3ESR_REDIS_URL" in os.environ:
        _check_redis(settings)
        kind = "your Redis (M3ESR_REDIS_URL)"
    else:
        database = start_database(children, var / "redis")
        env["M3ESR_REDIS_URL"], kind = database.url, f"embedded {database.kind}"
    ours = [sys.executable, "-m", "m3esr"]
    children.start("api", [*ours, "serve"], env)
    for index, profile in enumerate(settings.profiles):
        # Two workers cannot share a metrics port; beyond the first they take any.
        metrics = (
            {} if index == 0 and _is_free("127.0.0.1", settings.worker_metrics_port) else _any_metrics_port()
        )
        children.start(f"worker-{profile}", [*ours, "work", "--profile", profile], {**env, **metrics})
    url = f"http://{'127.0.0.1' if settings.host in ('0.0.0.0', '::') else settings.host}:{port}"
    with Client(url, timeout_seconds=30) as client:
        with console.status("loading the networks…"):
            _wait_until_ready(url, children)
        console.print(f"ready: {url} ({kind}; logs in {_short(var / 'log')})")
        if demo:
            _demo(console, client, url, children)
        console.print(f"  playground  {url}/\n  reference   {url}/docs\n  metrics     {url}/metrics")
        console.print("Ctrl-C ends it.")
        while True:
            children.check()
            time.sleep(POLL_SECONDS)


def _demo(console: "Console", client: Client, url: str, children: Children) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    folder = Path("out/demo")
    columns = (TextColumn("demo"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("queued", total=1.0)

            def show(job: Job) -> None:
                children.check()
                progress.update(bar, completed=job.fraction, description=job.stage)

            job, written = run_demo(client, folder, show)
    except OSError as error:
        # The service is up and well: a full disk here costs the demo only.
        sys.stderr.write(f"m3esr: the demo could not be written: {describe_os_error(error)}\n")
        return
    for path in written:
        if path.suffix != ".npy":
            console.print(f"  {path}")
    console.print(f"  job         {url}/v1/jobs/{job.id}\n  result      {url}/v1/jobs/{job.id}/result")


def _wait_until_ready(url: str, children: Children) -> None:
    """Poll /readyz: it turns 200 when the worker has warmed up. A child that ends raises ChildDied."""
    import httpx

    with httpx.Client(trust_env=False, timeout=5) as http:  # never through a proxy: it is this machine
        while True:
            children.check()
            try:
                if http.get(f"{url}/readyz").is_success:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(POLL_SECONDS)


def _check_port(host: str, port: int) -> int:
    """The port to use (a free one for 0). Raises UserError naming M3ESR_PORT when it is taken."""
    if port == 0:
        return free_port()
    if not _is_free(host, port):
        raise UserError(f"port {port} on {host} is taken. Set M3ESR_PORT (or --port) to a free one.")
    return port


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1)
        except OSError:
            return False
    return True


def _any_metrics_port() -> dict[str, str]:
    return {"M3ESR_WORKER_METRICS_PORT": str(free_port())}


def _check_redis(settings: Settings) -> None:
    try:
        connect(settings.redis_url).ping()
    except REDIS_AWAY:
        raise UserError(
            "Redis does not answer at M3ESR_REDIS_URL. Start it, or unset it for an embedded one."
        ) from None


@contextmanager
def _locked(var: Path) -> Iterator[None]:
    """Keep `var` to ourselves: two servers writing one append-only file would ruin it."""
    var.mkdir(parents=True, exist_ok=True)
    with (var / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another 'm3esr up' uses {var}. End it, or set M3ESR_VAR to another folder."
            ) from None
        yield


def _raise_stop(number: int, frame: FrameType | None) -> None:
    raise _Stop


def _short(path: Path) -> str:
    return os.path.relpath(path)
