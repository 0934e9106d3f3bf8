"""Every failure of a run is told in the vocabulary of jobs.errors."""

import errno

import pytest
from rq.timeouts import JobTimeoutException

from jobs import JobError
from models.imageio import ImageDecodeError
from worker.failures import as_decode_error, as_job_error


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobError("invalid-option", "x"), "invalid-option"),
        (JobTimeoutException("x"), "timed-out"),
        (MemoryError(), "out-of-memory"),
        (OutOfMemoryError("CUDA out of memory"), "out-of-memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out-of-memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "storage-full"),
        (RuntimeError("shapes do not match"), "upscale-failed"),
        (KeyError("secret"), "upscale-failed"),
    ],
)
def test_an_exception_has_its_code(error, code):
    assert as_job_error(error).code == code


def test_an_unexpected_exception_tells_the_caller_nothing_of_its_text():
    assert "secret" not in as_job_error(ValueError("secret path")).detail


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("image_too_large", "too-many-pixels"),
        ("unsupported_image", "unsupported-format"),
        ("broken_image", "invalid-image"),
    ],
)
def test_a_decoding_error_keeps_its_words_and_gets_our_code(code, told):
    error = as_decode_error(ImageDecodeError("the image is odd", code))
    assert (error.code, error.detail) == (told, "The image is odd.")
