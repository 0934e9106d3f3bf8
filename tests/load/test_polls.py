"""GET /v1/jobs/<id> against a bare route that does one Redis GET, and what a long line changes for it."""

import statistics

import pytest

from jobs import JobOutcome, JobStatus, MapInfo, Progress, ResultInfo
from tests.fakes import a_job
from tests.load.processes import IS_FULL, Server, has_wrk, tell

pytestmark = pytest.mark.timeout(900)  # at full length
ROUNDS, SECONDS = 3, 5.0
NUM_REQUESTS = 300


def polled(stage) -> dict[str, str]:
    """Paths to poll: a job in each state that is polled."""
    store, paths = stage.store, {}
    for state in ("queued", "running", "succeeded"):
        job_id = store.create(a_job(), max_queue_length=100).id
        paths[state] = f"/v1/jobs/{job_id}"
        if state != "queued":
            store.begin_attempt(job_id, state)
            store.report_progress(job_id, state, Progress(stage="denoising", step=1, num_steps=4, fraction=0.5))
        if state == "succeeded":
            quantiles = {"p10": 0.1, "p50": 0.2, "p90": 0.3, "p99": 0.4}
            names = ("uncertainty", "segmentation", "depth", "edge", "dino")
            result = ResultInfo(width=512, height=512, content_type="image/png", bytes=1, sha256="0" * 64)
            maps = {name: MapInfo(mean=0.5, quantiles=quantiles) for name in names}
            assert store.finish(job_id, state, JobStatus.SUCCEEDED, JobOutcome(result=result, maps=maps))
    return paths


def test_a_poll_costs_little_more_than_a_bare_route(stage):
    """In CI by processor time, which other load on the machine does not change; at full length by wrk."""
    bare, api, paths = stage.bare(), stage.api(), polled(stage)
    stage.redis.set("x", "v" * 300)
    sources: list[tuple[str, Server, str]] = [
        ("awaited GET", bare, "/awaited/x"),
        ("threaded GET", bare, "/threaded/x"),
    ]
    sources += [(state, api, path) for state, path in paths.items()]
    found: dict[str, list[float]] = {name: [] for name, _, _ in sources}
    if IS_FULL:
        assert has_wrk(), "wrk is missing: apt-get install wrk"
    for _ in range(ROUNDS):  # side by side, so that what else the machine does meets all of them
        for name, server, path in sources:
            rate = (
                server.requests_per_second(path, SECONDS)
                if IS_FULL
                else 1 / server.cost_of(path, NUM_REQUESTS // ROUNDS)
            )
            found[name].append(rate)
    rates = {name: statistics.median(values) for name, values in found.items()}
    best = max(rates["awaited GET"], rates["threaded GET"])
    unit = "a second" if IS_FULL else "per processor second"
    tell("status polls", *(f"{name} {rate:.0f} {unit} ({rate / best:.2f})" for name, rate in rates.items()))
    for state in paths:
        assert rates[state] >= (0.7 if IS_FULL else 0.4) * best, (state, rates)


def test_position_and_expected_seconds_cost_the_same_in_a_line_of_any_length(stage):
    api = stage.api()
    costs = {}
    for length in (100, 10_000):
        ids = stage.fill(length - stage.queue.depth("compact"))
        asked = [ids[0], ids[len(ids) // 2], ids[-1]]
        assert api.http.get(f"/v1/jobs/{asked[-1]}").json()["queue"]["position"] == length - 1
        stage.redis.config_resetstat()
        for _ in range(100):
            for job_id in asked:
                api.http.get(f"/v1/jobs/{job_id}")
        stats = {name.removeprefix("cmdstat_"): told for name, told in stage.redis.info("commandstats").items()}
        costs[length] = (stats["zrank"]["calls"], stats["evalsha"]["calls"], stats["evalsha"]["usec_per_call"])
    tell(
        "position in line",
        *(f"of {n}: {calls} ZRANK and {usec:.0f} us in Redis for 300 polls" for n, (calls, _, usec) in costs.items()),
    )
    (few, few_scripts, short), (many, many_scripts, long) = costs[100], costs[10_000]
    assert few == many == few_scripts == many_scripts == 300
    assert long < 3 * short  # a walk along the line would take 100 times as long
