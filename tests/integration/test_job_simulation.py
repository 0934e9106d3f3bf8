"""Any order of takes, deaths, late returns, cancels and lost dispatches: a job ends once and is never lost.

A state machine drives the real scripts on a real Redis with a clock of its own; it reaches orders that processes cannot
be made to hit on demand.
"""

import itertools

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jobs import (
    JobError,
    JobOutcome,
    JobQueue,
    JobStatus,
    JobStore,
    PreviewInfo,
    Progress,
    Recovery,
    Signal,
    connect,
)
from jobs.keys import LEASES, OUTBOX, line_key, rq_list, turns_key, waiting_key, webhook_key
from tests.fakes import FakeClock, a_job

LEASE_SECONDS = 15.0
MAX_ATTEMPTS = 3
PROFILE = "compact"


class JobSimulation(RuleBasedStateMachine):
    """runs: every run that ever began and may still speak, dead or alive: (job id, attempt id)."""

    redis_url = ""

    @initialize()
    def start(self):
        self.redis = connect(self.redis_url)
        self.redis.flushall()
        self.clock = FakeClock()
        self.store = JobStore(self.redis, clock=self.clock)
        self.queue = JobQueue(self.redis, clock=self.clock)
        self.recovery = Recovery(self.redis, self.store, self.queue, max_attempts=MAX_ATTEMPTS, clock=self.clock)
        self.job_ids, self.runs, self.ended, self.num_replays = [], [], {}, 0
        self.attempt_ids = (f"attempt-{n}" for n in itertools.count())

    @rule(
        is_dispatched=st.booleans(),
        webhook_url=st.sampled_from(["https://hooks.test/", None]),
        owner=st.sampled_from(["", "one", "two"]),
        priority=st.sampled_from(["low", "normal", "high"]),
    )
    def accept(self, is_dispatched, webhook_url, owner, priority):
        """The service may die before it hands the job on."""
        job = a_job(webhook_url=webhook_url, priority=priority).model_copy(update={"owner": owner})
        record = self.store.create(job, max_queue_length=10_000)
        self.job_ids.append(record.id)
        if is_dispatched:
            self.queue.enqueue(record)

    @rule(survives=st.booleans(), holder=st.sampled_from(["one", "two"]))
    def take(self, survives, holder):
        """A worker takes a dispatch; it may die before it begins."""
        raw = self.redis.lpop(rq_list(PROFILE))
        if raw is None or not survives:
            return
        self.begin_next(holder)

    def begin_next(self, holder):
        """The job whose place said so is the one that runs, or none when nobody waits."""
        attempt_id = next(self.attempt_ids)
        places = {job_id: self.queue.position(self.store.require(job_id)) for job_id in self.job_ids}
        begun = self.store.begin_next(PROFILE, attempt_id, holder=holder, lease_seconds=LEASE_SECONDS)
        assert [job_id for job_id, place in places.items() if place == 0] == ([begun.id] if begun else [])
        if begun:
            self.runs.append((begun.id, attempt_id))
        return begun

    @precondition(lambda self: self.job_ids)
    @rule(data=st.data())
    def dispatch_twice(self, data):
        """RQ, or a service that was not sure, hands the same job on again."""
        record = self.store.require(data.draw(st.sampled_from(self.job_ids)))
        self.queue.enqueue(record)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def progress(self, data):
        job_id, attempt_id = data.draw(st.sampled_from(self.runs))
        signal = self.store.report_progress(job_id, attempt_id, Progress(stage="denoising"))
        is_renewed = self.store.renew_lease(job_id, attempt_id, lease_seconds=LEASE_SECONDS)
        assert is_renewed == (signal is not Signal.FENCED)
        assert is_renewed == (self.store.require(job_id).attempt_id == attempt_id and job_id not in self.ended)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), status=st.sampled_from([JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED]))
    def finish(self, data, status):
        """Also runs that were thought dead may try to publish."""
        job_id, attempt_id = data.draw(st.sampled_from(self.runs))
        if self.store.finish(job_id, attempt_id, status, JobOutcome(caption=attempt_id)):
            assert job_id not in self.ended, "published twice"
            self.ended[job_id] = (status, attempt_id)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def put_back(self, data):
        job_id, attempt_id = data.draw(st.sampled_from(self.runs))
        if self.store.release(job_id, attempt_id):
            self.queue.enqueue(self.store.require(job_id))

    @precondition(lambda self: self.job_ids)
    @rule(data=st.data())
    def cancel(self, data):
        self.note(self.store.request_cancel(data.draw(st.sampled_from(self.job_ids))))

    @precondition(lambda self: self.job_ids)
    @rule(data=st.data(), is_dispatched=st.booleans())
    def replay(self, data, is_dispatched):
        """Only what failed or was canceled lives again; the service may die before it hands the job on."""
        job_id = data.draw(st.sampled_from(self.job_ids))
        status = self.store.require(job_id).status
        try:
            record = self.store.replay(job_id, max_queue_length=10_000)
        except JobError as error:
            assert error.code == "job-not-replayable"
            assert status not in (JobStatus.FAILED, JobStatus.CANCELED)
            return
        assert status in (JobStatus.FAILED, JobStatus.CANCELED)
        assert (record.status, record.attempts, record.attempt_id) == (JobStatus.QUEUED, 0, None)
        del self.ended[job_id]
        self.num_replays += 1
        if is_dispatched:
            self.queue.enqueue(record)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def preview(self, data):
        job_id, attempt_id = data.draw(st.sampled_from(self.runs))
        is_told = self.store.report_preview(job_id, attempt_id, PreviewInfo(width=4, height=3, fraction=1.0))
        record = self.store.require(job_id)
        assert is_told == (record.attempt_id == attempt_id and job_id not in self.ended)
        if is_told:
            assert record.preview is not None

    @rule(holder=st.sampled_from(["one", "two"]))
    def bury(self, holder):
        """A supervisor saw its worker die."""
        self.recovery.end_leases_of(holder)

    @rule(seconds=st.sampled_from([1, 6, 16]))
    def pass_time(self, seconds):
        self.clock.now += seconds

    @rule()
    def reap(self):
        for job_id in self.recovery.reclaim_expired():
            self.note(self.store.require(job_id))
        self.recovery.dispatch_lost(PROFILE)

    def note(self, record):
        """Jobs also end without a run: canceled while they waited, or given up."""
        if record.status.is_final and record.id not in self.ended:
            self.ended[record.id] = (record.status, record.attempt_id)

    @invariant()
    def every_job_is_in_its_place(self):
        waiting = {raw.decode() for raw in self.redis.zrange(waiting_key(PROFILE), 0, -1)}
        lines = {owner: self.redis.zcard(line_key(PROFILE, owner)) for owner in ("", "one", "two")}
        assert sum(lines.values()) == len(waiting)
        turns = {raw.decode() for raw in self.redis.zrange(turns_key(PROFILE), 0, -1)}
        assert turns == {owner for owner, length in lines.items() if length}
        leased = {raw.decode() for raw in self.redis.zrange(LEASES, 0, -1)}
        by_status = {job_id: self.store.require(job_id) for job_id in self.job_ids}
        assert waiting == {job_id for job_id, record in by_status.items() if record.status is JobStatus.QUEUED}
        assert leased == {job_id for job_id, record in by_status.items() if record.status is JobStatus.RUNNING}
        assert {job_id for job_id, record in by_status.items() if record.status.is_final} == set(self.ended)
        for job_id, (status, attempt_id) in self.ended.items():
            assert (by_status[job_id].status, by_status[job_id].attempt_id) == (status, attempt_id)
            if status is JobStatus.SUCCEEDED:
                assert by_status[job_id].outcome.caption == attempt_id
        asked = {job_id for job_id, record in by_status.items() if record.options.webhook_url}
        assert {raw.decode() for raw in self.redis.zrange(OUTBOX, 0, -1)} == asked & set(self.ended)
        for job_id in asked & set(self.ended):  # one webhook each, and of the end that was published
            assert self.redis.hget(webhook_key(job_id), "status").decode() == by_status[job_id].status
            webhook_replays = int(self.redis.hget(webhook_key(job_id), "replays"))
            assert webhook_replays == by_status[job_id].replays
        # A replayed job counts as accepted once more, and its last end stays counted.
        assert sum(self.store.counters().values()) == len(self.ended) + self.num_replays
        assert self.store.num_accepted() == len(self.job_ids) + self.num_replays
        assert all(record.attempt_id for record in by_status.values() if record.preview)
        assert all(record.attempts <= MAX_ATTEMPTS for record in by_status.values())

    def teardown(self):
        """Then the faults stop: with one good worker, every accepted job ends."""
        if not hasattr(self, "store"):
            return
        for _ in range(40 + 4 * len(self.job_ids)):
            self.clock.now += 6
            self.reap()
            while self.redis.lpop(rq_list(PROFILE)) is not None:
                if begun := self.begin_next("good"):
                    job_id, attempt_id = begun.id, begun.attempt_id
                    status = JobStatus.CANCELED if self.store.is_cancel_requested(job_id) else JobStatus.SUCCEEDED
                    assert self.store.finish(job_id, attempt_id, status, JobOutcome(caption=attempt_id))
                    assert job_id not in self.ended
                    self.ended[job_id] = (status, attempt_id)
            if len(self.ended) == len(self.job_ids):
                break
        self.every_job_is_in_its_place()
        assert set(self.ended) == set(self.job_ids), "a job was lost"
        self.redis.close()


def test_no_order_of_events_loses_a_job_or_publishes_it_twice(redis_url):
    JobSimulation.redis_url = redis_url
    machine = JobSimulation.TestCase()
    machine.settings = settings(
        max_examples=60,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,  # the same orders in every run: a red run can be repeated
        phases=[Phase.generate],  # shrinking takes minutes; add Phase.shrink to hunt a failure
    )
    machine.runTest()


@pytest.mark.parametrize("extra", [0, 1])
def test_a_reaper_gives_a_job_up_only_after_the_last_attempt(redis, extra):
    clock = FakeClock()
    store, queue = JobStore(redis, clock=clock), JobQueue(redis, clock=clock)
    recovery = Recovery(redis, store, queue, max_attempts=MAX_ATTEMPTS, clock=clock)
    job_id = store.create(a_job(), max_queue_length=9).id
    for n in range(MAX_ATTEMPTS - 1 + extra):
        store.begin_attempt(job_id, f"attempt-{n}")
        clock.now += 16
        recovery.reclaim_expired()
    assert (store.require(job_id).status is JobStatus.FAILED) == bool(extra)
