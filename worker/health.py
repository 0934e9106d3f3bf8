"""`python -m worker.health`: exit 0 while a worker of this host beats and is ready, else 1 and why."""

import socket
import sys

from jobs import REDIS_AWAY, HeartbeatRegistry, Settings, connect


def check(settings: Settings, hostname: str) -> str | None:
    """What is wrong with the workers on `hostname`, or None when one is ready."""
    try:
        workers = HeartbeatRegistry(connect(settings.redis_url)).workers()
    except REDIS_AWAY:
        return "Redis does not answer"
    ours = [worker for worker in workers if worker.id.rsplit("-", 2)[0] == hostname]
    if not ours:
        return f"no worker on {hostname} has a fresh heartbeat"
    return None if any(worker.is_ready for worker in ours) else f"the worker on {hostname} is still loading"


def main() -> int:
    """The exit code; the reason goes to stderr."""
    problem = check(Settings(), socket.gethostname())
    if problem:
        sys.stderr.write(f"unhealthy: {problem}\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
