"""What went wrong in a run, in the words of jobs.errors; tracebacks go to the log, never to the record."""

import errno

from rq.timeouts import JobTimeoutException

from jobs import JobError

# models.imageio's codes -> ours
_DECODE_CODES = {"image_too_large": "too-many-pixels", "unsupported_image": "unsupported-format"}
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def as_job_error(error: Exception) -> JobError:
    """The failure told to the caller for `error`, raised anywhere between the first byte and the last."""
    if isinstance(error, JobError):
        return error
    if isinstance(error, JobTimeoutException):
        return JobError("timed-out", "The job ran longer than the server allows. Ask for fewer steps or pixels.")
    if is_out_of_memory(error):
        return JobError("out-of-memory", "The device has too little memory for this job. Ask for a smaller output.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return JobError("storage-full", "There is no space left for images.", retry_after_seconds=60)
    return JobError("upscale-failed", "The worker hit an unexpected error; its log tells more under this job's id.")


def as_decode_error(error: ValueError) -> JobError:
    """The failure for a models.imageio.ImageDecodeError, whose message is meant for the sender."""
    code = _DECODE_CODES.get(getattr(error, "code", ""), "invalid-image")
    text = str(error)
    return JobError(code, f"{text[:1].upper()}{text[1:]}.")


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the host or on a device."""
    # torch.OutOfMemoryError is told by its name: this module must not need torch. The CPU allocator raises a
    # plain RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY_WORDS)
