"""Screening: what an image must be before it becomes a job."""

import asyncio
import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from jobs import JobError, Settings, UpscaleRequest
from service.uploads import read_options, screen_image
from tests.fakes import picture
from tests.heic import heic_of
from tests.unit.service.seats import a_seat

SETTINGS = Settings(storage_url="memory:///")


def screen(data, settings=SETTINGS, **options):
    async def screen_now():
        seat = a_seat()
        try:
            return await screen_image(data, UpscaleRequest(**options), settings, seat)
        finally:
            seat.leave()

    return asyncio.run(screen_now())


def refusal(data, settings=SETTINGS, **options):
    with pytest.raises(JobError) as raised:
        screen(data, settings, **options)
    return raised.value.code


def png_claiming(width, height):
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_each_format_of_the_list_is_taken(image_format):
    info = screen(picture(16, 12, image_format))
    assert (info.width, info.height, info.format) == (16, 12, image_format.lower())


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "I;16"])
def test_each_kind_of_pixel_is_taken(mode):
    if mode == "I;16":
        file = io.BytesIO()
        Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300).save(file, "PNG")
        data = file.getvalue()
    else:
        data = picture(16, 12, mode=mode)
    assert screen(data).width == 16


def test_a_heic_is_taken_with_its_own_rotation_and_one_of_several_pictures_is_not():
    photo, exif = Image.new("RGB", (64, 48), "red"), Image.Exif()
    exif[0x0112] = 6
    info = screen(heic_of(photo, exif=exif.tobytes()))
    assert (info.width, info.height, info.format) == (48, 64, "heic")
    assert refusal(heic_of(photo, photo)) == "animated-image"


def test_a_phones_jpeg_with_more_pictures_behind_the_first_is_a_jpeg():
    file = io.BytesIO()
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "blue")]
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:])
    assert screen(file.getvalue()).format == "jpeg"


def test_a_photograph_that_lies_on_its_side_is_measured_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    info = screen(picture(16, 12, "JPEG", exif=exif), width=48)
    assert (info.width, info.height) == (12, 16)


@pytest.mark.parametrize("image_format", ["GIF", "ICO", "PPM", "TGA"])
def test_a_format_off_the_list_is_refused_though_pillow_reads_it(image_format):
    assert refusal(picture(16, 16, image_format)) == "unsupported-format"


@pytest.mark.parametrize("data", [b"hello", b"\x89PNG", b"<svg/>", b"\xff\xd8\xff", b"%PDF-1.7", bytes(5000)])
def test_what_is_no_image_is_refused(data):
    assert refusal(data) in ("unsupported-format", "invalid-image")


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(image_format, kept):
    data = picture(64, 48, image_format)
    assert refusal(data[: int(len(data) * kept)]) in ("unsupported-format", "invalid-image")


@pytest.mark.parametrize("size", [(5000, 5000), (65_535, 65_535), (2**31 - 1, 2**31 - 1)])
def test_a_promise_of_many_pixels_is_refused_from_the_header_in_milliseconds(size):
    started = time.perf_counter()
    assert refusal(png_claiming(*size)) in ("too-many-pixels", "unsupported-format")
    assert time.perf_counter() - started < 0.5


def test_a_header_that_promises_pixels_that_are_not_there_is_refused():
    assert refusal(png_claiming(100, 100)) == "invalid-image"


def test_the_result_is_capped_too():
    settings = SETTINGS.model_copy(update={"max_output_pixels": 16 * 12 * 4})
    assert screen(picture(16, 12), settings, scale=2).width == 16
    assert refusal(picture(16, 12), settings, scale=2.1) == "too-many-pixels"


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_more_than_one_frame_or_page_is_refused(image_format):
    # Two frames that differ: WebP and PNG writers merge equal ones.
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, image_format, save_all=True, append_images=frames[1:])
    assert refusal(file.getvalue()) == "animated-image"


def test_form_fields_are_read_as_the_numbers_they_spell():
    options = read_options({"scale": "2.5", "seed": "7", "maps": "false", "modalities": "depth:0.5"}, SETTINGS)
    assert (options.scale, options.seed, options.maps) == (2.5, 7, False)
    assert options.modalities == {"depth": 0.5}
    assert options.profile == "compact"


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"webhook_url": "https://example.org/" + "a" * 2048}, "invalid-option", "webhook_url"),
        ({"priority": "1"}, "invalid-option", "priority"),
        ({"sclae": "2"}, "invalid-option", "sclae"),
        ({"scale": "two"}, "invalid-option", "scale"),
        ({"profile": "best"}, "unknown-profile", "profile"),
        ({"profile": "quality"}, "profile-not-installed", "profile"),
        ({"ttl_seconds": "86401"}, "invalid-option", "ttl_seconds"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields, code, field):
    with pytest.raises(JobError) as raised:
        read_options(fields, SETTINGS)
    assert (raised.value.code, raised.value.field) == (code, field)
    assert field in raised.value.detail or fields[field] in raised.value.detail
