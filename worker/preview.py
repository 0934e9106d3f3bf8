"""The preview of a run: a JPEG stored beside the running job, seldom enough to cost nothing."""

import contextvars
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import structlog
from numpy.typing import NDArray
from PIL import Image

from jobs import REDIS_AWAY, BlobStore, JobError, JobStore, PreviewInfo, preview_key
from worker.upscaler import Preview

# Between two previews of one run; the first and the last are stored at once.
PREVIEW_SECONDS = 2.0
JPEG_QUALITY = 85
log = structlog.get_logger(__name__)


class PreviewKeeper:
    """Called by the network with the coarse image so far; stores it in a thread, while the network goes on.

    A preview that cannot be kept ends no run. On exit the last one is stored, or lost.
    clock: seconds, never going back.
    """

    def __init__(
        self,
        store: JobStore,
        blobs: BlobStore,
        job_id: str,
        attempt_id: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._job_id = job_id
        self._attempt_id = attempt_id
        self._clock = clock
        self._kept_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, "preview")

    def __enter__(self) -> "PreviewKeeper":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def __call__(self, preview: Preview) -> None:
        """Store the preview, or leave it for a later one."""
        now = self._clock()
        if preview.fraction < 1 and now - self._kept_at < PREVIEW_SECONDS:
            return
        self._kept_at = now
        pixels = (preview.image * 255 + 0.5).astype(np.uint8)  # a copy: the image is the network's
        # With the context of this thread, so that a line in the log names the job.
        self._thread.submit(contextvars.copy_context().run, self._keep, pixels, preview.fraction)

    def _keep(self, pixels: NDArray[np.uint8], fraction: float) -> None:
        height, width = pixels.shape[:2]
        info = PreviewInfo(width=width, height=height, fraction=fraction)
        try:
            self._blobs.put(preview_key(self._job_id, self._attempt_id), encode_preview(pixels))
            self._store.report_preview(self._job_id, self._attempt_id, info)
        except JobError as error:
            log.warning("preview_lost", reason=error.detail)
        except OSError as error:  # a picture that JPEG cannot hold
            log.warning("preview_lost", reason=str(error))
        except REDIS_AWAY as error:
            log.warning("preview_lost", reason=str(error))
        except Exception:
            log.exception("preview_lost")  # nobody would hear of it


def encode_preview(pixels: NDArray[np.uint8]) -> bytes:
    """The JPEG of (h, w, 3) pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
