"""The blob store: inputs, results and maps by job id, in a local folder or an object store."""

import errno
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
import structlog
from obstore.store import LocalStore, MemoryStore, from_url

from jobs import keys
from jobs.errors import JobError

# A store that is away is told to callers within seconds; the library itself would go on for three minutes.
RETRIES: Any = {"max_retries": 10, "retry_timeout": timedelta(seconds=15)}


def input_key(job_id: str) -> str:
    """Where the upload lies, byte for byte as it came."""
    return f"{_checked(job_id)}/input"


def attempt_prefix(job_id: str, attempt_id: str) -> str:
    """The folder of one run: a late run cannot touch the files of the one that is published."""
    return f"{_checked(job_id)}/{_checked(attempt_id)}"


def result_key(job_id: str, attempt_id: str) -> str:
    """Where the image made by one run lies."""
    return f"{attempt_prefix(job_id, attempt_id)}/result"


def map_key(job_id: str, attempt_id: str, name: str, suffix: str) -> str:
    """Where one map lies; suffix: "png" (a heat map) or "npy" (float32 (h, w))."""
    return f"{attempt_prefix(job_id, attempt_id)}/maps/{name}.{suffix}"


def preview_key(job_id: str, attempt_id: str) -> str:
    """Where the preview of one run lies, a JPEG."""
    return f"{attempt_prefix(job_id, attempt_id)}/preview"


def _checked(job_id: str) -> str:
    # The id is part of a path: one that is not ours could climb out of the folder.
    if not keys.is_job_id(job_id):
        raise JobError("job-not-found", "No job has this id.")
    return job_id


class BlobStore:
    """Puts, gets and deletes whole blobs; a put is seen whole or not at all."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @classmethod
    def open(cls, storage_url: str) -> "BlobStore":
        """The store at a folder path or a file://, s3://, gs://, az:// or memory:// URL.

        A local folder is made when it is missing. Raises JobError storage-unavailable.
        """
        try:
            parts = urlsplit(storage_url)
            if parts.scheme in ("", "file"):
                folder = Path(unquote(parts.path) if parts.scheme else storage_url).absolute()
                folder.mkdir(parents=True, exist_ok=True)
                return cls(LocalStore(folder, automatic_cleanup=True))
            if parts.scheme == "memory":
                return cls(from_url(storage_url))
            return cls(from_url(storage_url, retry_config=RETRIES))
        except (OSError, obstore.exceptions.BaseError) as error:
            raise JobError("storage-unavailable", f"{storage_url} cannot be opened: {error}") from error

    def put(self, key: str, data: bytes, content_type: str | None = None) -> None:
        """Write `data` under `key`, over what was there. Raises storage-full or storage-unavailable.

        content_type: what an object store answers a signed link with; a folder has no place for it.
        """
        attributes = {"Content-Type": content_type} if content_type and not isinstance(self._store, LocalStore) else {}
        try:
            obstore.put(self._store, key, data, attributes=attributes)
        except (OSError, obstore.exceptions.BaseError) as error:
            raise _storage_error(error) from error

    def get(self, key: str) -> bytes | None:
        """The bytes under `key`, or None when there are none. Raises JobError storage-unavailable."""
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            return None
        except (OSError, obstore.exceptions.BaseError) as error:
            raise _storage_error(error) from error

    def exists(self, key: str) -> bool:
        """Whether there is a blob under `key`. Raises JobError storage-unavailable."""
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        except (OSError, obstore.exceptions.BaseError) as error:
            raise _storage_error(error) from error
        return True

    def sign(self, key: str, seconds: int) -> str | None:
        """A URL that opens the blob to whoever has it, for so long; None where the store knows none (a folder).

        Raises JobError storage-unavailable.
        """
        if isinstance(self._store, LocalStore | MemoryStore):
            return None
        try:
            return str(obstore.sign(self._store, "GET", key, timedelta(seconds=seconds)))
        except (OSError, obstore.exceptions.BaseError) as error:
            raise _storage_error(error) from error

    def keys(self, prefix: str | None = None) -> list[str]:
        """The keys under the folder `prefix` (without one: all of them)."""
        try:
            return [item["path"] for page in obstore.list(self._store, prefix=prefix) for item in page]
        except (OSError, obstore.exceptions.BaseError) as error:
            raise _storage_error(error) from error

    def jobs_untouched_since(self, moment: datetime) -> set[str]:
        """Ids of the jobs none of whose blobs was written after `moment`; folders that are not ours are not named."""
        newest: dict[str, datetime] = {}
        try:
            for page in obstore.list(self._store):
                for item in page:
                    job_id = item["path"].split("/")[0]
                    newest[job_id] = max(newest.get(job_id, item["last_modified"]), item["last_modified"])
        except (OSError, obstore.exceptions.BaseError) as error:
            raise _storage_error(error) from error
        return {job_id for job_id, written_at in newest.items() if written_at < moment and keys.is_minted_id(job_id)}

    def delete_prefix(self, job_id: str, attempt_id: str | None = None) -> int:
        """Delete all blobs of a job, or those of one run of it; how many there were."""
        found = self.keys(_checked(job_id) if attempt_id is None else attempt_prefix(job_id, attempt_id))
        for key in found:
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                continue  # another process swept it meanwhile
            except (OSError, obstore.exceptions.BaseError) as error:
                raise _storage_error(error) from error
        return len(found)


def _storage_error(error: Exception) -> JobError:
    is_full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    # For the log alone, and the first line of it: it names folders, buckets and addresses, no business of a caller's.
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    structlog.get_logger().error("storage_failed", reason=reason)
    if is_full:
        return JobError("storage-full", "There is no space left for images.", retry_after_seconds=60)
    return JobError("storage-unavailable", "The image storage failed; the log tells how.", retry_after_seconds=10)
