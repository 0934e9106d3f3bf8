"""The preview of a run: a JPEG stored while the job runs, seldom enough to cost nothing."""

import io
import time
from collections.abc import Callable

import numpy as np
import structlog
from PIL import Image

from jobs import REDIS_AWAY, BlobStore, JobError, JobStore, PreviewInfo, preview_key
from worker.upscaler import FloatImage, Preview

# Between two previews of one run; the first and the last are stored at once.
PREVIEW_SECONDS = 2.0
JPEG_QUALITY = 85
log = structlog.get_logger(__name__)


class PreviewKeeper:
    """Called by the network with the coarse image so far. A preview that cannot be kept ends no run.

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

    def __call__(self, preview: Preview) -> None:
        """Store the preview, or leave it for a later one."""
        now = self._clock()
        if preview.fraction < 1 and now - self._kept_at < PREVIEW_SECONDS:
            return
        self._kept_at = now
        height, width = preview.image.shape[:2]
        info = PreviewInfo(width=width, height=height, fraction=preview.fraction)
        try:
            self._blobs.put(preview_key(self._job_id, self._attempt_id), encode_preview(preview.image))
            self._store.report_preview(self._job_id, self._attempt_id, info)
        except JobError as error:
            log.warning("preview_lost", reason=error.detail)
        except OSError as error:  # a picture that JPEG cannot hold
            log.warning("preview_lost", reason=str(error))
        except REDIS_AWAY as error:
            log.warning("preview_lost", reason=str(error))


def encode_preview(image: FloatImage) -> bytes:
    """The JPEG of an image (h, w, 3) in [0, 1]."""
    file = io.BytesIO()
    Image.fromarray((image * 255 + 0.5).astype(np.uint8)).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
