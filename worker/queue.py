"""The RQ worker class: one queue, JSON, one allowed function, and a stop that loses nothing."""

from collections.abc import Callable
from types import FrameType
from typing import Any

import structlog
from rq.exceptions import StopRequested
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker

from jobs import TASK_NAME, RedisClient, queue_name
from worker import tasks
from worker.runner import StopFlag

# RQ blocks on the queue for this minus 15 s, and looks at nothing else meanwhile: 17 answers a signal in 2 s.
WORKER_TTL_SECONDS = 17
log = structlog.get_logger(__name__)


class TaskRefused(Exception):
    """The queue held a function other than ours."""


class UpscaleJob(Job):
    """A job that can only be worker.tasks.upscale.

    The JSON serializer alone does not stop whoever can write to Redis from naming os.system; this does.
    """

    @property
    def func(self) -> Callable[[str], None]:
        """The task. Raises TaskRefused for any other name."""
        if self.func_name != TASK_NAME or self.instance:
            raise TaskRefused(f"this worker runs {TASK_NAME} and nothing else")
        return tasks.upscale

    # RQ imports callbacks by the names in the job, so these would be another way in.
    @property
    def success_callback(self) -> None:
        """None: our jobs have no callbacks."""

    @property
    def failure_callback(self) -> None:
        """None: our jobs have no callbacks."""

    @property
    def stopped_callback(self) -> None:
        """None: our jobs have no callbacks."""

    def send_webhooks(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: RQ would call whatever address the payload names."""


class UpscaleWorker(SimpleWorker):
    """Runs jobs in this process, where the networks are; CUDA could not follow a fork.

    One profile, so one queue: with two, RQ dequeues by BLPOP and a worker killed at the wrong moment takes
    the job with it for ever. Its RQ name changes with each start.
    """

    max_connection_wait_time = 5.0

    def __init__(self, redis: RedisClient, profile: str, stop: StopFlag) -> None:
        super().__init__(
            [queue_name(profile)],
            connection=redis,
            job_class=UpscaleJob,
            serializer=JSONSerializer,
            worker_ttl=WORKER_TTL_SECONDS,
            log_job_description=False,
        )
        self._stop = stop

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """RQ asks this before each dequeue and never with a job in hand: the place where stopping is safe."""
        if self._stop.is_stopping:
            raise StopRequested
        return bool(super().should_run_maintenance_tasks)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Take no more jobs; asked again, put the running one back at its next step.

        RQ's own handler raises out of the blocking dequeue, which can drop the job just received (rq#2236).
        """
        request_stop(self._stop)

    def subscribe(self) -> None:
        """Nothing: RQ's commands come from whoever can publish; ours are signals."""

    def unsubscribe(self) -> None:
        """Nothing, as `subscribe`."""


def request_stop(stop: StopFlag) -> None:
    """Take note of a signal: the first ends the worker after its job, the second puts the job back."""
    if stop.is_stopping:
        stop.is_put_back_asked = True
    stop.is_stopping = True
    log.info("stopping", is_put_back_asked=stop.is_put_back_asked)
