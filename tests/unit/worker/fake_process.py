"""A worker process with the fake upscaler: STEP_SECONDS and LOAD_SECONDS come from the environment."""

import os
import time

from jobs import Settings
from tests.unit.worker.fakes import FakeUpscaler
from worker.main import run


def load(settings: Settings, profile: str) -> FakeUpscaler:
    """Take as long to load as asked."""
    time.sleep(float(os.environ.get("LOAD_SECONDS", "0")))
    return FakeUpscaler(step_seconds=float(os.environ.get("STEP_SECONDS", "0")))


if __name__ == "__main__":
    run(Settings(), load=load)
