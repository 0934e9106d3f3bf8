"""The one function that RQ may run."""

from worker.runner import JobRunner

# RQ calls a task by name and hands it nothing but its arguments, so the networks wait here.
_runner: JobRunner | None = None


def bind(runner: JobRunner | None) -> None:
    """Let `upscale` use these networks, from now on in this process."""
    global _runner
    _runner = runner


def upscale(job_id: str) -> None:
    """Run the job that is next in line; what it makes goes to record and storage. Raises RuntimeError before `bind`.

    job_id: of the job that the call was made for, which need not be the one whose turn it is.
    """
    if _runner is None:
        raise RuntimeError("worker.tasks.bind was not called: no networks are loaded")
    _runner.run_next(called_for=job_id)
