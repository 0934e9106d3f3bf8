"""Real files out: round trips, depth, alpha, and what metadata travels with an enhanced image."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from models.image_metadata import DIGITAL_SOURCE_TYPE
from models.imageio import DecodedImage, ImageEncodeError, decode_image, encode_image

FORMATS = ["png", "jpeg", "webp", "avif", "tiff"]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RANDOM = np.random.default_rng(0)


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([x, y, (1 - x) * y], axis=-1).astype(np.float32)


def camera_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = 1, "a camera", "CC0"
    exif[0x8769] = {0x9003: "2024:05:06 07:08:09", 0xA002: 16, 0xA003: 12}
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}
    return exif.tobytes()


def open_file(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("size", [(48, 64), (1, 1), (24, 700)])
def test_what_is_written_is_read_again(output_format, size):
    image = smooth(*size)
    data = encode_image(image, output_format)
    assert open_file(data).format == output_format.upper()
    decoded = decode_image(data)
    tolerance = 0.5 / 255 + 1e-6 if output_format in ("png", "tiff") else 0.06
    assert np.abs(decoded.pixels - image).max() <= tolerance


@pytest.mark.parametrize("output_format", ["png", "tiff"])
@pytest.mark.parametrize("is_gray", [False, True])
@pytest.mark.parametrize("has_alpha", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
def test_lossless_formats_keep_every_bit(output_format, is_gray, has_alpha, depth):
    peak = 2**depth - 1
    samples = RANDOM.integers(0, peak + 1, (300, 1200, 4))
    if is_gray:
        samples[..., :3] = samples[..., :1]
    source = DecodedImage(
        pixels=(samples[..., :3] / peak).astype(np.float32),
        alpha=(samples[..., 3] / peak).astype(np.float32) if has_alpha else None,
        bit_depth=depth,
        is_gray=is_gray,
    )
    data = encode_image(source.pixels, output_format, like=source)
    decoded = decode_image(data)
    assert decoded.bit_depth == depth
    assert decoded.is_gray == is_gray or (depth == 16 and has_alpha)
    assert np.array_equal(np.rint(decoded.pixels * peak), samples[..., :3])
    if has_alpha:
        assert np.array_equal(np.rint(decoded.alpha * peak), samples[..., 3])
    else:
        assert decoded.alpha is None


def test_depth_follows_the_source_where_the_format_can():
    deep = DecodedImage(pixels=smooth(), bit_depth=16)
    for output_format, depth in {"png": 16, "tiff": 16, "jpeg": 8, "webp": 8, "avif": 8}.items():
        assert decode_image(encode_image(smooth(), output_format, like=deep)).bit_depth == depth
    assert decode_image(encode_image(smooth(), "png", like=deep, bit_depth=8)).bit_depth == 8
    assert decode_image(encode_image(smooth(), "png", bit_depth=16)).bit_depth == 16


def test_alpha_grows_with_the_image():
    alpha = np.zeros((12, 16), np.float32)
    alpha[:, 8:] = 1
    source = DecodedImage(pixels=smooth(12, 16), alpha=alpha)
    for output_format in ("png", "webp", "avif", "tiff"):
        decoded = decode_image(encode_image(smooth(), output_format, like=source))
        assert decoded.alpha.shape == (48, 64)
        assert decoded.alpha[:, :24].max() < 0.02
        assert decoded.alpha[:, 40:].min() > 0.98


def test_jpeg_puts_white_behind_what_is_transparent():
    alpha = np.zeros((48, 64), np.float32)
    alpha[:, 32:] = 1
    decoded = decode_image(encode_image(np.zeros((48, 64, 3)), "jpeg", alpha=alpha))
    assert decoded.pixels[:, :24].min() > 0.98
    assert decoded.pixels[:, 40:].max() < 0.02


def test_gray_stays_gray():
    source = DecodedImage(pixels=smooth(), is_gray=True)
    for output_format in FORMATS:
        pixels = decode_image(encode_image(smooth(), output_format, like=source)).pixels
        assert np.ptp(pixels, axis=2).max() < (0.02 if output_format in ("webp", "avif") else 1e-6)
    assert open_file(encode_image(smooth(), "jpeg", like=source)).mode == "L"


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("depth", [8, 16])
def test_kept_metadata_holds_profile_exif_and_the_mark_of_enhancement(output_format, depth):
    source = DecodedImage(pixels=smooth(12, 16), bit_depth=depth, icc_profile=SRGB, exif=camera_exif())
    data = encode_image(smooth(), output_format, like=source)
    image = open_file(data)
    assert image.info["icc_profile"] == SRGB
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp", "").encode()
    assert f'DigitalSourceType="{DIGITAL_SOURCE_TYPE}"'.encode() in xmp
    exif = image.getexif()
    assert exif[0x010F] == "a camera"
    assert exif.get(0x0112, 1) == 1
    details = exif.get_ifd(0x8769)
    assert details[0x9003] == "2024:05:06 07:08:09"
    assert (details[0xA002], details[0xA003]) == (64, 48)
    assert exif.get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_photograph_can_go_round_twice_with_its_metadata(output_format):
    source = DecodedImage(pixels=smooth(12, 16), icc_profile=SRGB, exif=camera_exif())
    once = decode_image(encode_image(smooth(), output_format, like=source))
    twice = decode_image(encode_image(smooth(), "tiff", like=once))
    assert twice.icc_profile == SRGB
    exif = Image.Exif()
    exif.load(twice.exif)
    assert exif[0x8298] == "CC0"
    assert exif.get_ifd(0x8825)[2] == (52.0, 30.0, 0.0)
    assert 273 not in exif  # where the first file kept its strips is no business of the second


@pytest.mark.parametrize("output_format", FORMATS)
def test_stripped_metadata_leaves_only_the_profile(output_format):
    source = DecodedImage(pixels=smooth(12, 16), icc_profile=SRGB, exif=camera_exif())
    data = encode_image(smooth(), output_format, like=source, keep_metadata=False)
    assert b"a camera" not in data
    assert b"DigitalSourceType" not in data
    assert decode_image(data).exif is None
    assert decode_image(data).icc_profile == SRGB


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_mark_does_not_depend_on_a_source(output_format):
    assert DIGITAL_SOURCE_TYPE.encode() in encode_image(smooth(), output_format)


def test_a_gray_profile_is_written_only_beside_gray():
    gray_profile = SRGB[:16] + b"GRAY" + SRGB[20:]
    source = DecodedImage(pixels=smooth(), icc_profile=gray_profile, is_gray=True)
    assert open_file(encode_image(smooth(), "png", like=source)).info["icc_profile"] == gray_profile
    assert "icc_profile" not in open_file(encode_image(smooth(), "webp", like=source)).info


def test_values_outside_the_range_are_clipped():
    image = np.array([[[-1, 2, np.nan], [0.5, 1, 0]]], np.float32)
    assert open_file(encode_image(image, "png")).get_flattened_data() == ((0, 255, 0), (128, 255, 0))


def test_quality_matters_and_100_is_lossless_for_webp():
    image = RANDOM.random((64, 64, 3), dtype=np.float32)
    for output_format in ("jpeg", "webp", "avif"):
        assert len(encode_image(image, output_format, 20)) < len(encode_image(image, output_format, 90))
    exact = decode_image(encode_image(image, "webp", 100)).pixels
    assert np.abs(exact - image).max() <= 0.5 / 255 + 1e-6


def test_exif_too_long_for_a_jpeg_is_left_out():
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    source = DecodedImage(pixels=smooth(), exif=exif.tobytes())
    assert decode_image(encode_image(smooth(), "jpeg", like=source)).exif is None
    assert decode_image(encode_image(smooth(), "png", like=source)).exif is not None


def test_an_image_the_format_cannot_hold_is_an_error_that_says_so():
    with pytest.raises(ImageEncodeError, match=r"16400 x 1 pixels as webp"):
        encode_image(np.zeros((1, 16_400, 3), np.float32), "webp")


@pytest.mark.parametrize(
    "arguments",
    [{"output_format": "bmp"}, {"quality": 0}, {"bit_depth": 12}, {"output_format": "jpeg", "bit_depth": 16}],
)
def test_arguments_of_no_meaning_are_refused(arguments):
    with pytest.raises(ValueError):
        encode_image(smooth(), **arguments)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image is"):
        encode_image(np.zeros((4, 4)))
    with pytest.raises(ValueError, match="alpha is"):
        encode_image(smooth(), alpha=np.zeros((4, 4)))
