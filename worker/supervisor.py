"""The supervisor: starts the worker process, kills it when its job stops making progress, starts the next one.

It holds no networks, so nothing that can crash or hang inside them takes it along. The worker is a new process, not a
fork: CUDA could not follow a fork.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from jobs import REDIS_AWAY, HeartbeatRegistry, Settings, configure_logs, connect
from worker.main import check_profile, check_redis, new_worker_id
from worker.pulse import BUSY, IDLE, PULSE_FD, READY, WORKER_ID
from worker.reaper import Reaper

# After the running job was asked to go back to the queue, the worker has this long to end before it is killed.
PUT_BACK_SECONDS = 5.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 30.0
POLL_SECONDS = 0.2
log = structlog.get_logger(__name__)


def supervise(settings: Settings, profile: str | None = None, *, command: Sequence[str] = ()) -> int:
    """Keep one worker for `profile` at work until SIGTERM or SIGINT; the exit code.

    command: of the worker process, `python -m worker.main` by default. Raises SystemExit with one clear line when the
    profile is not one.
    """
    profile = check_profile(settings, profile)
    check_redis(connect(settings.redis_url), settings)
    configure_logs(settings.log_level)
    command = tuple(command) or (sys.executable, "-m", "worker.main", profile)
    with Reaper(settings) as reaper:
        return Supervisor(settings, command, reaper).run()


@dataclass
class Child:
    """A worker process and what its pulse told last. busy_since: of the last step of a running job."""

    worker_id: str
    process: subprocess.Popen[bytes]
    pulse_fd: int
    was_ready: bool = False
    busy_since: float | None = None

    def listen(self, seconds: float, clock: Callable[[], float]) -> None:
        """Take note of the signs that come within `seconds`."""
        if not select.select([self.pulse_fd], [], [], seconds)[0]:
            return
        signs = os.read(self.pulse_fd, 65_536)
        if not signs:  # it closed its end: it is ending
            time.sleep(min(seconds, POLL_SECONDS))
            return
        self.was_ready = self.was_ready or READY in signs
        last = max(signs.rfind(BUSY), signs.rfind(IDLE))
        if last >= 0:
            self.busy_since = clock() if signs[last : last + 1] == BUSY else None


@dataclass
class Supervisor:
    """One worker process after the other. clock: seconds, never going back."""

    settings: Settings
    command: Sequence[str]
    reaper: Reaper
    clock: Callable[[], float] = time.monotonic
    num_signals: int = 0
    stop_asked_at: float = field(default=float("inf"))
    child: Child | None = None

    def run(self) -> int:
        """Until a signal; 0, or the code of a worker that could not even start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.ask_to_stop())
        pause, was_ever_ready = FIRST_PAUSE_SECONDS, False
        while not self.num_signals:
            child = self.child = self._start()
            code = self._watch(child)
            self._bury(child)
            was_ever_ready = was_ever_ready or child.was_ready
            if self.num_signals:
                break
            if code > 0 and not was_ever_ready:
                return code  # wrong settings: it has said so, and would say so again
            pause = FIRST_PAUSE_SECONDS if child.was_ready else min(2 * pause, LONGEST_PAUSE_SECONDS)
            log.warning("worker_died", worker_id=child.worker_id, code=code, restart_seconds=pause)
            self._rest(pause)
        return 0

    def ask_to_stop(self) -> None:
        """A signal came: the first ends the worker after its job, the second puts the job back."""
        self.num_signals += 1
        self.stop_asked_at = min(self.stop_asked_at, self.clock())
        if self.child is not None:
            self.child.process.send_signal(signal.SIGTERM)

    def _start(self) -> Child:
        read_fd, write_fd = os.pipe()
        worker_id = new_worker_id()
        try:
            process = subprocess.Popen(
                self.command,
                env={**os.environ, PULSE_FD: str(write_fd), WORKER_ID: worker_id},
                pass_fds=(write_fd,),
                stdin=subprocess.DEVNULL,
                process_group=0,  # a signal to our group reaches us alone: we pass it on, in order
            )
        finally:
            os.close(write_fd)
        return Child(worker_id, process, read_fd)

    def _watch(self, child: Child) -> int:
        """Wait for the end of the child, and bring it about when it hangs; its exit code, negative for a signal."""
        if self.num_signals:  # it came between the start and the note of it
            child.process.send_signal(signal.SIGTERM)
        was_put_back_asked = False
        while (code := child.process.poll()) is None:
            child.listen(POLL_SECONDS, self.clock)
            now = self.clock()
            if child.busy_since is not None and now - child.busy_since > self.settings.stall_seconds:
                log.error("worker_stalled", worker_id=child.worker_id, stall_seconds=self.settings.stall_seconds)
                child.process.kill()
            draining = now - self.stop_asked_at
            if draining > self.settings.drain_seconds and not was_put_back_asked:
                was_put_back_asked = True
                child.process.send_signal(signal.SIGTERM)
            if draining > self.settings.drain_seconds + PUT_BACK_SECONDS:
                child.process.kill()
        return code

    def _bury(self, child: Child) -> None:
        """Give back at once what a dead worker held, rather than when its lease runs out."""
        os.close(child.pulse_fd)
        if not child.was_ready:
            return  # it took no job, and has said itself why it ended
        try:
            HeartbeatRegistry(connect(self.settings.redis_url)).leave(child.worker_id)
            for job_id in self.reaper.recovery.end_leases_of(child.worker_id):
                log.warning("worker_died_with_job", worker_id=child.worker_id, job_id=job_id)
        except REDIS_AWAY as error:
            log.warning("redis_away", reason=str(error))  # the lease runs out by itself
        if self.num_signals:
            self.reaper.round()  # the last one of this process: nobody else may be there

    def _rest(self, seconds: float) -> None:
        until = self.clock() + seconds
        while self.clock() < until and not self.num_signals:
            time.sleep(min(POLL_SECONDS, seconds))


if __name__ == "__main__":
    sys.exit(supervise(Settings(), sys.argv[1] if len(sys.argv) > 1 else None))
