"""Workers that are killed, stopped or told to end, under a stream of jobs: none is lost, none is published twice."""

import random
import signal
import time

import pytest

from jobs import JobStatus
from tests.chaos.fleet import AWAY_SECONDS, LEASE_SECONDS, NUM_FAULTS, NUM_JOBS
from tests.chaos.processes import wait_until

pytestmark = pytest.mark.timeout(1800)  # at full length


@pytest.mark.parametrize("whom", ["child", "supervisor", "both"])
def test_no_job_is_lost_when_workers_are_killed(fleet, whom):
    randomness = random.Random(0)
    for _ in range(2):
        fleet.start_worker()
    for _ in range(NUM_JOBS):
        fleet.submit(num_steps=4)
    for _ in range(num_faults := max(1, NUM_FAULTS // 3)):
        # The seconds to a re-run are those until a worker has it, not those that a busy machine takes to start workers.
        wait_until(fleet.are_all_ready, 90, "both workers are ready")
        fleet.keep_busy(num_steps=4)
        victim = wait_until(fleet.running, 60, "a job runs")
        worker = fleet.worker_of(victim) or randomness.choice(fleet.workers)
        time.sleep(randomness.uniform(0, 0.6))  # in any stage: between steps, while publishing, before the next begins
        before = fleet.running_at(worker)
        if before is not None and before.attempts > 1:
            continue  # a third death in its hands would make the job fail, as it should: test_faults
        worker.hit(whom)
        if whom != "child":
            fleet.replace(worker)
        if before is not None:
            fleet.note_recovery(before)
    records = fleet.drain()
    fleet.check_published_once(records)
    assert max(record.attempts for record in records) <= 3
    fleet.report(f"kill -9 of {whom}", num_faults)
    assert max(fleet.recoveries, default=0) < LEASE_SECONDS + 5


def test_a_worker_that_was_stopped_for_longer_than_its_lease_publishes_nothing(fleet):
    sleeper = fleet.start_worker()
    victim_id = fleet.submit(num_steps=30)
    victim = wait_until(fleet.running, 60, "the job runs")
    stopped = sleeper.child
    sleeper.hit("both", signal.SIGSTOP)
    fleet.start_worker()
    fleet.note_recovery(victim)
    time.sleep(max(0.0, AWAY_SECONDS - fleet.recoveries[-1]))
    record = fleet.drain()[0]
    assert record.attempt_id != victim.attempt_id
    sleeper.hit("both", signal.SIGCONT)
    wait_until(lambda: "job_fenced" in fleet.log_path.read_text() or sleeper.child != stopped, 30, "it is fenced off")
    assert fleet.store.require(victim_id) == record
    fleet.check_published_once([record])
    runs = {key.split("/")[1] for key in fleet.blobs.keys(victim_id)}
    assert runs == {"input", record.attempt_id}
    fleet.report("SIGSTOP longer than the lease", 1)


def test_a_rolling_restart_loses_nothing_and_charges_no_attempt(fleet):
    for _ in range(2):
        fleet.start_worker()
    for _ in range(NUM_JOBS):
        fleet.submit(num_steps=8)
    wait_until(fleet.running, 60, "a job runs")
    for worker in list(fleet.workers):
        worker.process.send_signal(signal.SIGTERM)
        fleet.replace(worker)
        time.sleep(1)
    records = fleet.drain()
    fleet.check_published_once(records)
    assert {record.attempts for record in records} == {1}
    fleet.report("SIGTERM of every worker in turn", 2)


def test_a_worker_told_to_end_puts_its_long_job_back_within_the_grace_period(fleet):
    worker = fleet.start_worker()
    job_id = fleet.submit(num_steps=100)
    wait_until(fleet.running, 60, "the job runs")
    asked_at = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(timeout=20) == 0
    assert time.monotonic() - asked_at < 8  # M3ESR_DRAIN_SECONDS is 1 here
    record = fleet.store.require(job_id)
    assert (record.status, record.attempts) == (JobStatus.QUEUED, 0)
