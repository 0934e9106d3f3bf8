"""`m3esr up`: an embedded Redis, the API and a worker as children of one command, and a demo through them."""

import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from jobs import REDIS_AWAY, Settings, connect
from m3esr.children import ChildDied, Children
from m3esr.client import Client, ClientError, Job
from m3esr.database import free_port, start_database
from m3esr.demo import run_demo
from m3esr.errors import UserError, describe_os_error

if TYPE_CHECKING:
    from rich.console import Console

POLL_SECONDS = 0.2
OURS = (sys.executable, "-m", "m3esr")


class _Stop(BaseException):
    """A signal asked for the end; no handler of ordinary errors may swallow it."""


@dataclass(frozen=True)
class _Plan:
    """What to start. worker_command: what `--profile NAME` is appended to."""

    settings: Settings
    var: Path
    port: int
    demo: bool
    worker_command: tuple[str, ...]

    @property
    def url(self) -> str:
        """Where this machine reaches the API."""
        host = self.settings.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def up(
    settings: Settings,
    *,
    port: int | None = None,
    demo: bool = True,
    worker_command: Sequence[str] = (*OURS, "work"),
) -> int:
    """Start everything, run the demo, serve until Ctrl-C or SIGTERM, end every child within 10 s.

    worker_command: for tests. The exit code: 0 after a signal, 1 when a child died or the demo failed.
    Raises UserError when it cannot start.
    """
    from rich.console import Console

    var = Path(os.environ.get("M3ESR_VAR", "var")).absolute()
    port = _check_port(settings.host, settings.port if port is None else port)
    console = Console(highlight=False)
    with _locked(var):
        children = Children(var / "log")
        previous = {number: signal.signal(number, _raise_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            _serve(console, children, _Plan(settings, var, port, demo, tuple(worker_command)))
        except _Stop:
            console.print("stopping ...")
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


def _serve(console: "Console", children: Children, plan: _Plan) -> NoReturn:
    """Start the children, show the demo, and watch them; only an exception ends it."""
    kind = _start(children, plan)
    with console.status("loading the networks ..."):
        _wait_until_ready(plan.url, children)
    console.print(f"ready: {plan.url} ({kind}; logs in {os.path.relpath(plan.var / 'log')})")
    if plan.demo:
        # No proxy: it is this machine.
        with Client(plan.url, api_key=os.environ.get("M3ESR_API_KEY") or None, trust_env=False) as client:
            _demo(console, client, plan.url, children)
    console.print(f"  playground  {plan.url}/\n  reference   {plan.url}/docs\n  metrics     {plan.url}/metrics")
    console.print("Ctrl-C ends it.")
    while True:
        children.check()
        time.sleep(POLL_SECONDS)


def _start(children: Children, plan: _Plan) -> str:
    """Start Redis (unless one is named), the API and a worker per profile; which Redis, to be read."""
    env = {**os.environ, "M3ESR_PORT": str(plan.port), "PYTHONUNBUFFERED": "1"}
    env.setdefault("M3ESR_STORAGE_URL", str(plan.var / "storage"))
    if "M3ESR_REDIS_URL" in os.environ:
        _check_redis(plan.settings)
        kind = "Redis of M3ESR_REDIS_URL"
    else:
        database = start_database(children, plan.var / "redis")
        env["M3ESR_REDIS_URL"], kind = database.url, f"embedded {database.kind}"
    children.start("api", [*OURS, "serve"], env)
    metrics_port = plan.settings.worker_metrics_port
    for profile in plan.settings.profiles:
        # Two processes cannot share a port, and a taken one is no reason not to start.
        if metrics_port and not _is_free(plan.settings.worker_metrics_host, metrics_port):
            metrics_port = free_port()
        worker_env = {**env, "M3ESR_WORKER_METRICS_PORT": str(metrics_port)}
        children.start(f"worker-{profile}", [*plan.worker_command, "--profile", profile], worker_env)
        metrics_port = metrics_port and free_port()
    return kind


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
    except ClientError as error:
        if error.code != "unauthorized":
            raise
        console.print("  demo left out: this service has API keys. Set M3ESR_API_KEY to one of them.")
        return
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
            raise UserError(f"another 'm3esr up' uses {var}. End it, or set M3ESR_VAR to another folder.") from None
        yield


def _raise_stop(number: int, frame: FrameType | None) -> None:
    raise _Stop
