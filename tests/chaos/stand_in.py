"""A supervised worker with a paced upscaler: the same supervisor, worker class and runner as the real one.

A job's prompt says what goes wrong in it: `hang` makes a step that never ends, `crash` a native crash.
"""

import os
import sys
import time
from typing import Any

from jobs import Settings
from tests.unit.worker.fakes import FakeResult, FakeUpscaler
from worker.main import run
from worker.supervisor import supervise


class FaultyUpscaler(FakeUpscaler):
    """The fake, with faults on demand."""

    def upscale(self, lr_image: Any, options: Any, on_progress: Any = None, on_preview: Any = None) -> FakeResult:
        """Enlarge, hang or crash."""
        if options.prompt == "hang":
            time.sleep(3600)
        if options.prompt == "crash":
            os.abort()
        return super().upscale(lr_image, options, on_progress, on_preview)


def load(settings: Settings, profile: str) -> FaultyUpscaler:
    """Steps take STEP_SECONDS."""
    return FaultyUpscaler(step_seconds=float(os.environ.get("STEP_SECONDS", "0.1")))


if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        run(Settings(), load=load)
    else:
        sys.exit(supervise(Settings(), command=(sys.executable, "-m", "tests.chaos.stand_in", "child")))
