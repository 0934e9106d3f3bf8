"""Real files in: every format, depth, mode and orientation, and files that lie or break off."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from models.image_metadata import png_chunk
from models.imageio import ImageDecodeError, decode_image
from tests.heic import heic_of

RANDOM = np.random.default_rng(0)
FORMATS = ["PNG", "JPEG", "WEBP", "AVIF", "TIFF", "HEIF"]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# A picture whose four corners tell all eight orientations apart, large enough for lossy formats.
CORNERS = np.zeros((32, 64, 3), np.uint8)
CORNERS[:16, :32], CORNERS[:16, 32:], CORNERS[16:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
# What a camera stores for each orientation so that the picture appears as CORNERS.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def file_of(image: Image.Image, image_format: str, **options) -> bytes:
    if image_format == "HEIF":
        if "exif" in options and not isinstance(options["exif"], bytes):
            options["exif"] = options["exif"].tobytes()
        return heic_of(image, **options)
    output = io.BytesIO()
    image.save(output, image_format, **options)
    return output.getvalue()


def deep_png(samples: np.ndarray, colour_type: int, *chunks: bytes) -> bytes:
    """A 16-bit PNG of (H, W, C) uint16, written by hand: nothing between the test and the standard."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    body = (
        png_chunk(b"IHDR", header),
        *chunks,
        png_chunk(b"IDAT", zlib.compress(rows)),
        png_chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_is_read(image_format, tmp_path: Path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.stack([np.tile(ramp, (48, 1)), np.tile(ramp[::-1], (48, 1)), np.full((48, 64), 90, np.uint8)], -1)
    path = tmp_path / "image"
    path.write_bytes(file_of(Image.fromarray(image), image_format, quality=95))
    for source in (path, path.read_bytes()):
        decoded = decode_image(source)
        assert decoded.pixels.shape == (48, 64, 3)
        assert decoded.pixels.dtype == np.float32
        assert (decoded.bit_depth, decoded.alpha, decoded.is_gray) == (8, None, False)
        assert np.abs(decoded.pixels - image / 255).max() < (1e-6 if image_format in ("PNG", "TIFF") else 0.08)


@pytest.mark.parametrize("orientation", STORED_AS)
@pytest.mark.parametrize("image_format", FORMATS)
def test_each_orientation_comes_out_upright_and_is_reset(image_format, orientation):
    image, turn = Image.fromarray(CORNERS), STORED_AS[orientation]
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "a camera"
    options = {"tiffinfo": exif} if image_format == "TIFF" else {"exif": exif}
    decoded = decode_image(file_of(image if turn is None else image.transpose(turn), image_format, **options))
    assert decoded.pixels.shape == CORNERS.shape
    assert np.abs(decoded.pixels - CORNERS / 255)[4:12, 4:28].max() < 0.1
    assert np.median(np.abs(decoded.pixels - CORNERS / 255)) < 0.02
    kept = Image.Exif()
    kept.load(decoded.exif)
    assert kept[0x0112] == 1
    assert kept[0x010F] == "a camera"


@pytest.mark.parametrize("orientation", STORED_AS)
@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_each_orientation_is_applied_to_16_bit_colour_too(image_format, orientation):
    upright = RANDOM.integers(0, 65536, (5, 9, 3), dtype=np.uint16)
    turn = {2: (1, 1), 3: (2, 0), 4: (0, 2), 6: (1, 0), 8: (3, 0)}
    if orientation in (2, 4):
        stored = upright[:, ::-1] if orientation == 2 else upright[::-1]
    elif orientation in (5, 7):
        stored = upright.swapaxes(0, 1) if orientation == 5 else np.rot90(upright, 2).swapaxes(0, 1)
    else:
        stored = np.rot90(upright, turn.get(orientation, (0, 0))[0])
    if image_format == "PNG":
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = deep_png(stored, 2, png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    else:
        stored = np.ascontiguousarray(stored[..., ::-1])
        data = cv2.imencode(".tiff", stored)[1].tobytes()
        data = with_tiff_orientation(data, orientation)
    decoded = decode_image(data)
    assert decoded.bit_depth == 16
    assert np.array_equal(np.rint(decoded.pixels * 65535), upright)


def with_tiff_orientation(data: bytes, orientation: int) -> bytes:
    """Appends a copy of a little-endian TIFF's directory with the orientation tag in it."""
    offset = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[offset : offset + 2])[0]
    entries = [data[offset + 2 + 12 * i :][:12] for i in range(count)]
    entries = [entry for entry in entries if struct.unpack("<H", entry[:2])[0] != 274]
    entries.append(struct.pack("<HHIHH", 274, 3, 1, orientation, 0))
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2])[0])
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


@pytest.mark.parametrize("colour_type, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_a_16_bit_png_is_read_to_the_last_bit(colour_type, channels):
    samples = RANDOM.integers(0, 65536, (7, 6, channels), dtype=np.uint16)
    decoded = decode_image(deep_png(samples, colour_type))
    assert decoded.bit_depth == 16
    assert decoded.is_gray == (channels <= 2)
    colour = samples[..., :3] if channels >= 3 else samples[..., [0, 0, 0]]
    assert np.array_equal(np.rint(decoded.pixels * 65535), colour)
    if channels in (2, 4):
        assert np.array_equal(np.rint(decoded.alpha * 65535), samples[..., -1])
    else:
        assert decoded.alpha is None


@pytest.mark.parametrize("colour_type, channels", [(0, 1), (2, 3)])
def test_a_16_bit_png_may_name_one_colour_transparent(colour_type, channels):
    samples = RANDOM.integers(0, 65536, (7, 6, channels), dtype=np.uint16)
    key = png_chunk(b"tRNS", samples[2, 3].astype(">u2").tobytes())
    alpha = decode_image(deep_png(samples, colour_type, key)).alpha
    assert alpha[2, 3] == 0
    assert alpha.sum() == 7 * 6 - 1


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 3)])
def test_a_16_bit_tiff_is_read_to_the_last_bit(shape):
    samples = RANDOM.integers(0, 65536, shape, dtype=np.uint16)
    decoded = decode_image(cv2.imencode(".tiff", samples)[1].tobytes())
    assert decoded.bit_depth == 16
    expected = np.stack([samples] * 3, -1) if len(shape) == 2 else samples[..., ::-1]
    assert np.array_equal(np.rint(decoded.pixels * 65535), expected)


def test_big_endian_16_bit_gray_is_read_right():
    samples = RANDOM.integers(0, 65536, (7, 6), dtype=np.uint16)
    data = file_of(Image.frombytes("I;16B", (6, 7), samples.astype(">u2").tobytes()), "TIFF")
    assert np.array_equal(np.rint(decode_image(data).pixels[..., 0] * 65535), samples)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_8_bit_modes_of_png(mode):
    channels = 4 if "A" in mode else 3
    image = Image.fromarray(RANDOM.integers(0, 256, (9, 8, channels), dtype=np.uint8)).convert(mode)
    decoded = decode_image(file_of(image, "PNG"))
    assert np.allclose(decoded.pixels, np.asarray(image.convert("RGB")) / 255, atol=1e-6)
    assert decoded.is_gray == (mode in ("1", "L", "LA"))
    if "A" in mode:
        assert np.allclose(decoded.alpha, np.asarray(image.getchannel("A")) / 255, atol=1e-6)
    else:
        assert decoded.alpha is None


def test_transparency_of_palettes_and_of_a_colour_key():
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    decoded = decode_image(file_of(palette, "PNG", transparency=bytes([255, 128, 0])))
    assert np.allclose(decoded.alpha, np.array([[255, 128], [0, 128]]) / 255)
    assert decoded.pixels[0, 0].tolist() == [1, 0, 0]
    keyed = file_of(Image.fromarray(CORNERS), "PNG", transparency=(255, 0, 0))
    assert decode_image(keyed).alpha[0, [0, 63]].tolist() == [0, 1]


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(image_format):
    decoded = decode_image(file_of(Image.fromarray(CORNERS).convert("CMYK"), image_format))
    assert np.abs(decoded.pixels - CORNERS / 255)[4:12, 4:28].max() < 0.05
    assert not decoded.is_gray


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_colour_profile_is_kept(image_format):
    data = file_of(Image.fromarray(CORNERS), image_format, icc_profile=SRGB)
    assert decode_image(data).icc_profile == SRGB


def test_a_profile_of_another_colour_space_is_not_kept():
    cmyk = Image.fromarray(CORNERS).convert("CMYK")
    inks = SRGB[:16] + b"CMYK" + SRGB[20:]  # says CMYK, is unusable: the plain conversion steps in
    decoded = decode_image(file_of(cmyk, "JPEG", icc_profile=inks))
    assert decoded.icc_profile is None
    assert np.abs(decoded.pixels - CORNERS / 255)[4:12, 4:28].max() < 0.05
    assert decode_image(file_of(Image.fromarray(CORNERS), "PNG", icc_profile=b"nonsense")).icc_profile is None


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.fromarray(CORNERS), Image.new("RGB", (64, 32))]
    for image_format in ("PNG", "WEBP", "TIFF"):
        data = file_of(frames[0], image_format, save_all=True, append_images=frames[1:], lossless=True)
        assert np.allclose(decode_image(data).pixels, CORNERS / 255, atol=1e-6)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(image_format, share):
    noise = RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = file_of(Image.fromarray(noise), image_format)
    with pytest.raises(ImageDecodeError):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_16_bit_file_is_refused(share):
    samples = RANDOM.integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    for data in (deep_png(samples, 2), cv2.imencode(".tiff", samples)[1].tobytes()):
        with pytest.raises(ImageDecodeError):
            decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("image_format", FORMATS)
def test_random_damage_gives_an_image_or_the_one_error(image_format):
    data = file_of(Image.fromarray(CORNERS), image_format)
    for seed in range(60):
        damage = np.random.default_rng(seed)
        broken = bytearray(data)
        for place in damage.integers(0, len(data), 5):
            broken[place] = damage.integers(0, 256)
        try:
            assert decode_image(bytes(broken), max_pixels=100_000).pixels.ndim == 3
        except ImageDecodeError as error:
            assert str(error)


@pytest.mark.parametrize("data", [b"", b"hello", b"GIF89a" + bytes(50), b"<svg xmlns='x'/>"])
def test_what_is_no_image_of_a_known_format_is_refused(data):
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(data)
    assert caught.value.code == "unsupported_image"


def test_other_formats_that_pillow_knows_stay_closed():
    for image_format in ("GIF", "BMP", "PPM"):
        with pytest.raises(ImageDecodeError, match="known formats"):
            decode_image(file_of(Image.fromarray(CORNERS), image_format))


def test_too_many_pixels_are_refused_before_decoding():
    header = struct.pack(">IIBBBBB", 12_000, 9_000, 8, 2, 0, 0, 0)  # a header alone: decoding would fail
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")
    with pytest.raises(ImageDecodeError, match=r"12000 x 9000 is 108\.0 Mpx, the limit is 50\.0 Mpx") as caught:
        decode_image(data, max_pixels=50_000_000)
    assert caught.value.code == "image_too_large"
    with pytest.raises(ImageDecodeError, match="damaged"):
        decode_image(data)
    bomb = data.replace(struct.pack(">II", 12_000, 9_000), struct.pack(">II", 60_000, 60_000))
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(bomb)
    assert caught.value.code in (
        "image_too_large",
        "unsupported_image",
    )  # Pillow's own limit, or the checksum
    assert decode_image(file_of(Image.fromarray(CORNERS), "PNG"), max_pixels=64 * 32).pixels.shape == (
        32,
        64,
        3,
    )


def test_samples_that_have_no_range_are_refused():
    floats = Image.fromarray(np.ones((4, 4), np.float32) * 300)
    with pytest.raises(ImageDecodeError, match="floating-point") as caught:
        decode_image(file_of(floats, "TIFF"))
    assert caught.value.code == "unsupported_image"


def test_broken_exif_costs_the_exif_and_not_the_image():
    data = file_of(Image.fromarray(CORNERS), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    decoded = decode_image(data)
    assert decoded.exif is None
    assert decoded.pixels.shape == (32, 64, 3)


def test_a_missing_file_is_the_callers_mistake(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        decode_image(tmp_path / "none.png")
