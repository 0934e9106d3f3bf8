"""The answer to a poll, kept with the record it shows: most polls find the job as the poll before did."""

from collections import OrderedDict

from starlette.concurrency import run_in_threadpool

from jobs import JobRecord, JobStatus
from jobs.polls import KEPT_RECORDS
from service.context import Context
from service.schemas import view_job

# record, position and expected seconds -> its JSON
_Kept = tuple[JobRecord, tuple[int | None, float | None], bytes]


class PolledJobs:
    """Bodies by job id; as many as records are kept for polls."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    async def body(self, record: JobRecord, position: int | None) -> bytes:
        """The JSON of a `JobView`. record: of `jobs.JobPolls`: the same object while nothing changed."""
        if not self._is_all_known(record, position):
            view = await run_in_threadpool(view_job, self._context, record, position)
            return view.model_dump_json().encode()
        eta_seconds = None if position is None else self._context.paces.eta_seconds(record.profile, position)
        kept = self._kept.pop(record.id, None)
        if kept is None or kept[0] is not record or kept[1] != (position, eta_seconds):
            body = view_job(self._context, record, position).model_dump_json().encode()
            kept = (record, (position, eta_seconds), body)
        self._kept[record.id] = kept
        if len(self._kept) > KEPT_RECORDS:
            self._kept.popitem(last=False)
        return kept[2]

    def _is_all_known(self, record: JobRecord, position: int | None) -> bool:
        """Whether the record can be shown without asking Redis more."""
        if record.options.webhook_url is not None:
            return False
        is_waiting = record.status is JobStatus.QUEUED
        return not is_waiting or (position is not None and self._context.paces.is_fresh(record.profile))
