"""Jobs that hang or crash every worker, and a Redis that dies: the rest goes on."""

import pytest

from jobs import JobStatus
from tests.chaos.fleet import NUM_JOBS
from tests.chaos.processes import wait_until

pytestmark = pytest.mark.timeout(1800)  # at full length


@pytest.mark.parametrize("fault", ["hang", "crash"])
def test_a_job_that_hangs_or_kills_every_worker_fails_with_the_reason_and_others_go_on(fleet, fault):
    fleet.start_worker()
    fleet.start_worker()
    poisoned = fleet.submit(prompt=fault)
    others = [fleet.submit() for _ in range(NUM_JOBS // 3)]
    records = {record.id: record for record in fleet.drain()}
    told = records.pop(poisoned)
    assert (told.status, told.attempts, told.outcome.error.code) == (JobStatus.FAILED, 3, "worker-lost")
    assert {records[job_id].status for job_id in others} == {JobStatus.SUCCEEDED}
    fleet.report(f"a job that makes every worker {fault}", 3)


def test_no_accepted_job_is_lost_when_redis_is_killed(fleet):
    for _ in range(2):
        fleet.start_worker()
    for _ in range(NUM_JOBS):
        fleet.submit(num_steps=4)
    wait_until(fleet.running, 60, "a job runs")
    wait_until(lambda: fleet.redis.info("persistence")["aof_last_write_status"] == "ok", 5, "the file is written")
    fleet.server.kill()
    fleet.server.start()
    records = fleet.drain()
    fleet.check_published_once(records)
    fleet.report("kill -9 of Redis", 1)


def test_a_job_accepted_by_a_service_that_died_before_dispatching_it_is_run(fleet):
    job_id = fleet.submit()
    fleet.redis.delete("rq:queue:m3esr:compact")
    fleet.start_worker()
    record = fleet.drain()[0]
    assert (record.id, record.status) == (job_id, JobStatus.SUCCEEDED)
    assert fleet.store.recoveries() == {"dispatch_lost": 1}
