"""A preview is kept seldom enough, whole at the end, and never at the cost of the run."""

import io
import threading

import numpy as np
from PIL import Image
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs import BlobStore, JobError, preview_key
from tests.unit.worker.fakes import FakePreview
from tests.unit.worker.test_progress import Clock
from worker.preview import PreviewKeeper

IMAGE = np.full((6, 8, 3), 0.5, dtype=np.float32)
PLACE = preview_key("job", "attempt")


class FakeStore:
    def __init__(self, failure=None):
        self.failure, self.told = failure, []

    def report_preview(self, job_id, attempt_id, preview):
        if self.failure:
            raise self.failure
        self.told.append((preview.width, preview.height, preview.fraction))
        return True


class FullBlobs:
    def put(self, key, data):
        raise JobError("storage-full", "There is no space left.")


def keeper(store, clock=None, blobs=None):
    return PreviewKeeper(store, blobs or BlobStore.open("memory:///"), "job", "attempt", clock=clock or Clock())


def test_a_preview_is_a_jpeg_in_the_folder_of_the_run():
    store, blobs = FakeStore(), BlobStore.open("memory:///")
    image = IMAGE.copy()
    with keeper(store, blobs=blobs) as keep:
        keep(FakePreview(image, 1.0))
        image[:] = 0  # the network goes on with its own
    with Image.open(io.BytesIO(blobs.get(PLACE))) as image:
        assert (image.format, image.size, image.getpixel((3, 3))) == ("JPEG", (8, 6), (128, 128, 128))
    assert store.told == [(8, 6, 1.0)]


def test_previews_that_follow_each_other_are_left_out_but_the_first_and_the_last():
    store, clock = FakeStore(), Clock()
    with keeper(store, clock) as keep:
        for now, fraction in [(0.0, 0.2), (0.5, 0.4), (2.5, 0.6), (2.6, 0.8), (2.7, 1.0)]:
            clock.now = now
            keep(FakePreview(IMAGE, fraction))
    assert [fraction for _, _, fraction in store.told] == [0.2, 0.6, 1.0]


def test_neither_a_lost_redis_nor_a_full_storage_ends_the_run():
    with keeper(FakeStore(RedisConnectionError("away"))) as keep:
        keep(FakePreview(IMAGE, 1.0))
    store = FakeStore()
    with keeper(store, blobs=FullBlobs()) as keep:
        keep(FakePreview(IMAGE, 1.0))
    assert store.told == []


def test_the_run_does_not_wait_for_the_storage():
    is_let_go = threading.Event()

    class SlowBlobs:
        def put(self, key, data):
            assert is_let_go.wait(10)

    store = FakeStore()
    with keeper(store, blobs=SlowBlobs()) as keep:
        keep(FakePreview(IMAGE, 1.0))
        assert store.told == []
        is_let_go.set()
    assert store.told == [(8, 6, 1.0)]
