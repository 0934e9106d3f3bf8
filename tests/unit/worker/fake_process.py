"""A worker process with the fake upscaler: `python -m tests.unit.worker.fake_process STEP_S LOAD_S`."""

import sys
import time

from jobs import Settings
from tests.unit.worker.fakes import FakeUpscaler
from worker.main import run


def load(settings: Settings, profile: str) -> FakeUpscaler:
    """Take as long to load as asked on the command line."""
    time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0)
    return FakeUpscaler(step_seconds=float(sys.argv[1]) if len(sys.argv) > 1 else 0)


if __name__ == "__main__":
    run(Settings(), load=load)
