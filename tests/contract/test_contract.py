"""The served OpenAPI document against the API itself: schemathesis makes requests of it and checks every answer.

CONTRACT_EXAMPLES sets how many random requests each operation gets beside the systematic ones (default 15).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest
import schemathesis
import structlog
from hypothesis import strategies as st
from schemathesis.core.failures import Failure
from schemathesis.engine.core import Engine
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.openapi.checks import UseAfterFree
from starlette.testclient import TestClient

from jobs import BlobStore, Settings, connect
from service.app import create_app
from tests.conftest import RedisServer
from tests.fakes import FakeWorker, a_job, picture

NUM_EXAMPLES = int(os.environ.get("CONTRACT_EXAMPLES", "15"))
NUM_DONE_JOBS = 3
PICTURES = [picture(), picture(9, 7, "JPEG"), picture(5, 5, "WEBP", "RGBA")]
# A form that keeps to the document may still ask for two sizes at once, or for a webhook on a server without secret.
# That 422 is not in the schema's power; all other operations must take what the document allows.
CONFIG = {
    "generation": {"max-examples": NUM_EXAMPLES, "deterministic": True, "database": "none"},
    "operations": [
        {"include-name": name, "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "422"]}}}
        for name in ("POST /v1/upscale", "POST /v1/batches", "POST /v1/estimate")
    ],
}


@schemathesis.check
class GoneAfterDelete:
    """What a DELETE answered with 204 is not found any more, nor is anything below it."""

    deleted: ClassVar[set[str]] = set()

    def after_response(
        self, ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
    ) -> None:
        path = urlsplit(str(response.request.url)).path
        if case.method == "DELETE" and response.status_code == 204:
            self.deleted.add(path)
        for location in response.headers.get("location", []):  # an Idempotency-Key may make it anew
            self.deleted.discard(location)
        if case.method == "GET" and any(path == gone or path.startswith(f"{gone}/") for gone in self.deleted):
            assert response.status_code >= 400, f"{path} was deleted and is answered with {response.status_code}"


@pytest.fixture
def api(redis_server: RedisServer, tmp_path: Path) -> Iterator[schemathesis.BaseSchema]:
    """The document as served in process, by an app with a real Redis, finished jobs and a worker that makes more."""
    redis = connect(redis_server.url)
    redis.flushall()
    settings = Settings(redis_url=redis_server.url, storage_url=str(tmp_path), max_queue_length=100_000)
    blobs = BlobStore.open(str(tmp_path))
    app = create_app(settings, redis, blobs)
    worker, done = FakeWorker(redis, blobs), []
    worker.announce()
    for _ in range(NUM_DONE_JOBS):
        record = app.state.context.store.create(a_job(), max_queue_length=10)
        blobs.put(f"{record.id}/input", picture())
        app.state.context.queue.enqueue(record)
        worker.run_next()
        done.append(record.id)
    # Random bytes are no image; with these the rest of the form is what decides.
    schemathesis.openapi.format("binary", st.sampled_from(PICTURES))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=schemathesis.Config.from_dict(CONFIG))

    @schema.hook
    def filter_failure(
        context: schemathesis.HookContext,
        failure: Failure,
        case: schemathesis.Case,
        response: schemathesis.Response,
    ) -> bool:
        # The check `use_after_free` takes every 2xx of a DELETE for a deletion and has no setting to say which. 202 is
        # a cancel that was accepted: the job is still there, and tells how it ends, as the document says. After a 204
        # the check stands, and `GoneAfterDelete` looks for the same over the whole run, not over one sequence alone.
        is_cancel = (
            isinstance(failure, UseAfterFree) and failure.free.removeprefix("DELETE ") not in GoneAfterDelete.deleted
        )
        return not is_cancel

    @schema.hook
    def map_path_parameters(context: schemathesis.HookContext, path_parameters: dict[str, object]) -> dict[str, object]:
        # Random ids find nothing: about half of the requests are about a job that is there.
        if path_parameters and len(str(path_parameters.get("job_id", ""))) % 2:
            return {**path_parameters, "job_id": done[len(str(path_parameters)) % NUM_DONE_JOBS]}
        return path_parameters

    with structlog.testing.capture_logs(), worker.running():
        yield schema
    redis.close()


def test_every_answer_is_what_the_document_says(api: schemathesis.BaseSchema) -> None:
    failures: dict[str, str] = {}
    num_checked = 0
    for event in Engine(api).execute():
        if isinstance(event, NonFatalError | FatalError):
            error = event.value if isinstance(event, NonFatalError) else event.exception
            failures[f"{type(error).__name__}: {error}"] = ""
        if isinstance(event, ScenarioFinished):
            for nodes in event.recorder.checks.values():
                num_checked += len(nodes)
                for info in (node.failure_info for node in nodes if node.failure_info):
                    told = f"{event.recorder.label}: {info.failure.title}: {info.failure.message}"
                    failures.setdefault(told, info.code_sample)
    assert num_checked > 1000
    assert GoneAfterDelete.deleted
    # An app of its own: the one that was tested keeps its connections in the loop of the test's tool.
    context = api.app.state.context
    with TestClient(create_app(context.settings, context.redis, context.blobs)) as client:
        assert {client.get(path).status_code for path in GoneAfterDelete.deleted} == {
            404
        }  # though nobody looked before
    assert not failures, "\n\n".join(f"{told}\n{request[:600]}" for told, request in failures.items())
