"""The running API as a fixture."""

import contextlib

import pytest
import structlog

from jobs import Settings
from tests.integration.serving import serving


@pytest.fixture
def logs():
    """What is logged, as a list of dicts, and not printed."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        yield lines


@pytest.fixture
def serve(redis_url, tmp_path, logs):
    """Start an API with these settings; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(**changes):
            settings = Settings(redis_url=redis_url, storage_url=str(tmp_path / "storage"))
            return stack.enter_context(serving(settings.model_copy(update=changes)))

        yield start


@pytest.fixture
def service(serve):
    """An API with the default settings."""
    return serve()
