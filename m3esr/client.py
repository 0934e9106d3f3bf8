"""The HTTP client: submits images, waits, fetches results; it needs no other file of ours, only httpx."""

import json
import mimetypes
import random
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin

import httpx

FINAL = ("succeeded", "failed", "canceled", "expired")
RETRIED = (429, 503)
MAX_RETRY_SECONDS = 30.0


class ClientError(Exception):
    """The server refused, or the job failed. code: of the problem ("queue-full"); status: HTTP status."""

    def __init__(self, message: str, *, code: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class ServerAway(ClientError):
    """No answer from the server, within the retries."""


@dataclass(frozen=True)
class Job:
    """A job as the server last told it. body: the whole answer of GET /v1/jobs/<id>."""

    id: str
    status: str
    body: dict[str, Any]

    @property
    def is_final(self) -> bool:
        """Whether it will not change any more."""
        return self.status in FINAL

    @property
    def fraction(self) -> float:
        """How far it is, 0 to 1."""
        if self.status == "succeeded":
            return 1.0
        return float((self.body.get("progress") or {}).get("fraction", 0.0))

    @property
    def stage(self) -> str:
        """What it does right now, for a person to read."""
        progress = self.body.get("progress") or {}
        step, num_steps = progress.get("step"), progress.get("num_steps")
        stage = str(progress.get("stage") or self.status)
        return f"{stage} {step}/{num_steps}" if step and num_steps else stage


@dataclass(frozen=True)
class Batch:
    """A batch as the server last told it; jobs in the order of its files. body: the whole answer."""

    id: str
    jobs: tuple[Job, ...]
    body: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        """Whether all of its jobs are over."""
        return all(job.is_final for job in self.jobs)


class Client:
    """One server. Answers 429 and 503 are tried again after their Retry-After, for `patience_seconds` in all.

    url: of the server. api_key: for a server that asks for one. trust_env: use the proxies of the environment.
    transport, sleep: for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 60.0,
        patience_seconds: float = 120.0,
        headers: dict[str, str] | None = None,
        trust_env: bool = True,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/") + "/"
        self._patience_seconds = patience_seconds
        self._sleep = sleep
        if api_key is not None:
            headers = {**(headers or {}), "Authorization": f"Bearer {_checked(api_key)}"}
        try:
            self._http = httpx.Client(
                base_url=self.url,
                timeout=timeout_seconds,
                headers=headers,
                trust_env=trust_env,
                transport=transport,
            )
            if self._http.base_url.scheme not in ("http", "https") or not self._http.base_url.host:
                raise ValueError
        except (ValueError, httpx.InvalidURL) as error:
            raise ClientError(f"'{url}' is not an http:// or https:// address") from error

    def submit(self, image: Path | str | bytes, *, filename: str | None = None, **options: Any) -> Job:
        """Send an image (a path or its bytes) with the form fields of POST /v1/upscale; None leaves one out.

        Raises OSError when the path cannot be read.
        """
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        name = filename or ("image" if isinstance(image, bytes) else Path(image).name)
        # One key for all tries of this call: a POST whose answer was lost does not become a second job.
        response = self._ask(
            "POST",
            "v1/upscale",
            data=_form(options),
            files={"file": (name, data, _content_type(name))},
            headers={"Idempotency-Key": uuid.uuid4().hex},
        )
        return _job(response)

    def submit_batch(self, images: Sequence[Path | str], **options: Any) -> Batch:
        """Send several images with the same options, accepted all together or not at all; fields as for `submit`.

        Raises OSError when a path cannot be read.
        """
        paths = [Path(image) for image in images]
        files = [("file", (path.name, path.read_bytes(), _content_type(path.name))) for path in paths]
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return _batch(self._ask("POST", "v1/batches", data=_form(options), files=files, headers=headers))

    def batch(self, batch_id: str) -> Batch:
        """How the jobs of a batch stand."""
        return _batch(self._ask("GET", f"v1/batches/{batch_id}"))

    def cancel_batch(self, batch: Batch) -> None:
        """Cancel the jobs that are not over, or delete a finished batch."""
        self._ask("DELETE", f"v1/batches/{batch.id}")

    def estimate(self, width: int, height: int, **options: Any) -> dict[str, Any]:
        """What an image of width x height pixels would become, and in how many seconds; fields as for `submit`."""
        given = {name: value for name, value in options.items() if value is not None}
        body = {"input": {"width": width, "height": height}, "options": given}
        return dict(self._ask("POST", "v1/estimate", json=body).json())

    def job(self, job_id: str) -> Job:
        """How the job stands."""
        return _job(self._ask("GET", f"v1/jobs/{job_id}"))

    def wait(
        self,
        job: Job,
        *,
        timeout_seconds: float | None = None,
        on_progress: Callable[[Job], None] | None = None,
        poll_seconds: float = 0.5,
    ) -> Job:
        """Poll until the job succeeded. Raises ClientError when it ends otherwise or the time is over."""
        started = time.monotonic()
        while True:
            if on_progress is not None:
                on_progress(job)
            if job.is_final:
                return _require_success(job)
            if timeout_seconds is not None and time.monotonic() - started > timeout_seconds:
                raise ClientError(f"job {job.id} is still {job.status} after {timeout_seconds:g} s")
            self._sleep(poll_seconds)
            job = self.job(job.id)

    def result(self, job: Job) -> bytes:
        """The image file of a job that succeeded."""
        url = (_require_success(job).body.get("result") or {}).get("url") or f"v1/jobs/{job.id}/result"
        return self._ask("GET", self._absolute(url)).content

    def maps(self, job: Job, *, as_values: bool = False) -> dict[str, bytes]:
        """The job's maps by name: PNG heat maps, or with as_values float32 (h, w) in npy format."""
        described = _require_success(job).body.get("maps") or {}
        headers = {"Accept": "application/x-npy" if as_values else "image/png"}
        return {
            name: self._ask("GET", self._absolute(info["url"]), headers=headers).content
            for name, info in described.items()
        }

    def preview(self, job: Job) -> bytes | None:
        """The coarse image so far, a JPEG; None while there is none."""
        url = (job.body.get("preview") or {}).get("url")
        return self._ask("GET", self._absolute(url)).content if url else None

    def replay(self, job: Job) -> Job:
        """Queue a failed or canceled job again, under its id."""
        return _job(self._ask("POST", f"v1/jobs/{job.id}/replay"))

    def cancel(self, job: Job) -> None:
        """Cancel the job, or delete it when it is final."""
        self._ask("DELETE", f"v1/jobs/{job.id}")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _absolute(self, url: str) -> str:
        target = urljoin(self.url, url)
        if _origin(httpx.URL(target)) != _origin(self._http.base_url):  # headers with a key must not go elsewhere
            raise ClientError(f"the server points to another address: {target}")
        return target

    def _ask(self, method: str, url: str, **request: Any) -> httpx.Response:
        waited, attempt = 0.0, 0
        while True:
            failure: ClientError
            seconds = min(MAX_RETRY_SECONDS, 0.5 * 2**attempt) * random.uniform(0.8, 1.2)
            try:
                response = self._http.request(method, url, **request)
            except httpx.TransportError as error:
                # Nobody listens: say so at once. A connection that broke off may come back.
                failure = ServerAway(f"no answer from {self.url} ({_reason(error)}). Is the server running?")
                if isinstance(error, (httpx.ConnectError, httpx.UnsupportedProtocol)) or attempt >= 3:
                    raise failure from error
            else:
                if response.is_success:
                    return response
                failure = _refusal(response)
                if response.status_code not in RETRIED:
                    raise failure
                seconds = _retry_after(response) or seconds
            if waited + seconds > self._patience_seconds:
                raise failure
            self._sleep(seconds)
            waited, attempt = waited + seconds, attempt + 1


def _checked(api_key: str) -> str:
    # Checked here: an HTTP library would tell the key in its complaint.
    if re.fullmatch(r"[!-~]+", api_key.strip()) is None:
        raise ClientError("the API key is empty or has characters that no key has")
    return api_key.strip()


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _form(options: dict[str, Any]) -> dict[str, str]:
    return {field: _form_value(value) for field, value in options.items() if value is not None}


def _content_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _form_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):  # modalities
        return ",".join(f"{name}:{strength:g}" for name, strength in value.items()) or "none"
    return str(value)


def _job(response: httpx.Response) -> Job:
    try:
        return _read_job(response.json())
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"{response.url} did not answer with a job: is it an M3ESR server?") from error


def _read_job(body: dict[str, Any]) -> Job:
    return Job(id=str(body["id"]), status=str(body["status"]), body=body)


def _batch(response: httpx.Response) -> Batch:
    try:
        body = response.json()
        return Batch(id=str(body["id"]), jobs=tuple(map(_read_job, body["jobs"])), body=body)
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"{response.url} did not answer with a batch: is it an M3ESR server?") from error


def _require_success(job: Job) -> Job:
    if job.status == "succeeded":
        return job
    error = job.body.get("error") or {}
    told = error.get("detail") or error.get("title") or ""
    raise ClientError(f"job {job.id} {job.status}{': ' if told else ''}{told}", code=_code(error))


def _refusal(response: httpx.Response) -> ClientError:
    try:
        problem = response.json()
        told = problem.get("detail") or problem.get("title")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        problem, told = {}, None
    told = told or f"the server answered {response.status_code} {response.reason_phrase}"
    return ClientError(str(told), code=_code(problem), status=response.status_code)


def _code(problem: dict[str, Any]) -> str:
    return str(problem.get("type", "")).rpartition(":")[2]


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.1, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
