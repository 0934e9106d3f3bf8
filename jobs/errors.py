"""The one vocabulary of failures: stable codes with their HTTP status, for HTTP, queue, CLI and client."""

from dataclasses import dataclass

PROBLEM_TYPE_PREFIX = "urn:m3esr:problem:"


@dataclass(frozen=True)
class ErrorKind:
    """What every failure of one code has in common.

    title: one short sentence, the same for each occurrence. status: HTTP status. is_retryable: whether the
    same request may succeed later without a change.
    """

    title: str
    status: int
    is_retryable: bool = False


# Codes are part of the API: they are added, never renamed.
ERROR_KINDS: dict[str, ErrorKind] = {
    # the upload
    "empty-file": ErrorKind("The uploaded file is empty", 422),
    "missing-file": ErrorKind("The form has no file", 422),
    "body-too-large": ErrorKind("The request body is too large", 413),
    "url-not-fetched": ErrorKind("The image could not be fetched from its address", 422, is_retryable=True),
    "unsupported-format": ErrorKind("The file is not an image of a supported format", 422),
    "invalid-image": ErrorKind("The image is damaged and cannot be decoded", 422),
    "animated-image": ErrorKind("Animated and multi-page images are not supported", 422),
    "too-many-pixels": ErrorKind("The image has too many pixels", 422),
    "costly-image": ErrorKind("The image takes too much time or memory to decode", 422),
    # the caller
    "unauthorized": ErrorKind("An API key is needed", 401),
    "rate-limited": ErrorKind("Too many requests", 429, is_retryable=True),
    "quota-exceeded": ErrorKind("The quota of pixels is used up", 429, is_retryable=True),
    "too-many-files": ErrorKind("The batch has too many files", 422),
    # the request
    "malformed-form": ErrorKind("The multipart form cannot be parsed", 400),
    "invalid-option": ErrorKind("A field of the request is not valid", 422),
    "unknown-profile": ErrorKind("There is no such profile", 422),
    "profile-not-installed": ErrorKind("The profile is not installed on this server", 422),
    "idempotency-key-reused": ErrorKind("The Idempotency-Key belongs to a different request", 422),
    "bad-request": ErrorKind("The request cannot be understood", 400),
    "not-found": ErrorKind("There is nothing at this address", 404),
    "method-not-allowed": ErrorKind("The method is not allowed here", 405),
    "not-acceptable": ErrorKind("The requested media type cannot be served", 406),
    # the job
    "job-not-found": ErrorKind("There is no such job", 404),
    "job-not-finished": ErrorKind("The job has no result yet", 409, is_retryable=True),
    "job-failed": ErrorKind("The job failed and has no result", 409),
    "job-canceled": ErrorKind("The job was canceled and has no result", 409),
    "job-expired": ErrorKind("The job has expired and its files are deleted", 410),
    "job-not-replayable": ErrorKind("The job did not fail and was not canceled", 409),
    "map-not-found": ErrorKind("The job has no such map", 404),
    "preview-not-found": ErrorKind("The job has no preview", 404, is_retryable=True),
    "link-not-available": ErrorKind("This server gives no links to results", 404),
    "batch-not-found": ErrorKind("There is no such batch", 404),
    "webhook-not-found": ErrorKind("The job has no webhook to send", 404),
    "webhook-disabled": ErrorKind("The receiver wants no more webhooks for this job", 409),
    # the server
    "queue-full": ErrorKind("The queue is full", 429, is_retryable=True),
    "decoders-busy": ErrorKind("Too many uploads wait to be opened", 503, is_retryable=True),
    "redis-unavailable": ErrorKind("The job database cannot be reached", 503, is_retryable=True),
    "storage-unavailable": ErrorKind("The image storage cannot be reached", 503, is_retryable=True),
    "storage-full": ErrorKind("The image storage is full", 503, is_retryable=True),
    "no-worker": ErrorKind("No worker is ready for the default profile", 503, is_retryable=True),
    "internal-error": ErrorKind("Something went wrong on the server", 500),
    # the run (told in the job's `error`, never as an HTTP status of its own)
    "out-of-memory": ErrorKind("The device ran out of memory", 500, is_retryable=True),
    "timed-out": ErrorKind("The job took longer than allowed", 500),
    "worker-lost": ErrorKind("The worker died while it ran the job", 500, is_retryable=True),
    "upscale-failed": ErrorKind("The image could not be upscaled", 500),
}


class JobError(Exception):
    """A failure told to the caller: a code of `ERROR_KINDS`, and what happened and what to do about it.

    detail: one or two sentences about this occurrence. field: the form field at fault, when there is one.
    retry_after_seconds: when to try again, for the retryable ones.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        kind = ERROR_KINDS[code]
        self.code = code
        self.detail = detail
        self.field = field
        self.retry_after_seconds = retry_after_seconds
        self.title = kind.title
        self.status = kind.status
        self.is_retryable = kind.is_retryable

    @property
    def type(self) -> str:
        """The problem type URI (RFC 9457)."""
        return PROBLEM_TYPE_PREFIX + self.code
