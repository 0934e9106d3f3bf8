"""What a job writes, read by programs that share no code with what wrote it: exiftool and ImageMagick."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from jobs import UpscaleRequest
from models.image_metadata import DIGITAL_SOURCE_TYPE
from tests.corpus.containers import noise, png_of, saved, tiff_of
from tests.heic import heic_of
from tests.unit.worker.fakes import FakeUpscaler
from worker import results

OUTPUTS = ("png", "jpeg", "webp", "avif", "tiff")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
IS_TOLD_AS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP", "avif": "AVIF", "tiff": "TIFF"}

needs_exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="apt-get install libimage-exiftool-perl")
needs_identify = pytest.mark.skipif(not shutil.which("identify"), reason="apt-get install imagemagick")


def result_of(folder: Path, data: bytes, **options: object) -> Path:
    """The file a job of `data` publishes; the stand-in for the networks repeats pixels."""
    request = UpscaleRequest.model_validate({"scale": 2, **options})
    source = results.decode(data, 10**7)
    height, width = source.pixels.shape[:2]
    result = FakeUpscaler().upscale(source.pixels, results.upscale_options(request, width, height))
    path = folder / f"result.{request.output_format}"
    path.write_bytes(results.encode(result, request, source))
    return path


def exiftool(path: Path) -> dict[str, object]:
    """Every tag by group and name, numbers as numbers; it must find nothing to complain of."""
    command = ["exiftool", "-json", "-n", "-G1", str(path)]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)[0]
    assert not [value for name, value in told.items() if name.endswith((":Error", ":Warning"))], told
    return dict(told)


def identify(path: Path, *questions: str) -> list[str]:
    """ImageMagick's answers."""
    command = ["identify", "-precision", "12", "-format", "\n".join(questions), str(path)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    # Of XMP in a WebP its version 6 warns whoever wrote it, and libtiff of EXIF's numbers in 16 bits.
    assert "@ error" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def values_at(path: Path, x: int, y: int) -> list[float]:
    """Red, green, blue and alpha of one pixel in [0, 1]."""
    asked = ("".join(f"%[fx:p{{{x},{y}}}.{channel}] " for channel in "rgba"),)
    return [float(value) for value in identify(path, *asked)[0].split()]


def camera_jpeg() -> bytes:
    """A photograph 16x12 as stored, lying on its side, with what a camera writes beside it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = 6, "a camera", "CC0"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    exif.get_ifd(0x8825)[1], exif.get_ifd(0x8825)[2] = "N", (52.0, 30.0, 0.0)
    return saved(Image.fromarray(noise()), "JPEG", quality=95, exif=exif, icc_profile=SRGB)


@needs_exiftool
@pytest.mark.parametrize("output", OUTPUTS)
def test_exiftool_finds_what_the_camera_wrote_and_the_mark_of_enhancement(tmp_path, output):
    told = exiftool(result_of(tmp_path, camera_jpeg(), output_format=output))
    assert str(told["File:FileType"]).endswith(IS_TOLD_AS[output])
    assert told["Composite:ImageSize"] == "24 32"  # turned upright, then doubled
    assert told.get("IFD0:Orientation", 1) == 1
    assert (told["IFD0:Make"], told["IFD0:Copyright"]) == ("a camera", "CC0")
    assert told["ExifIFD:DateTimeOriginal"] == "2024:05:06 07:08:09"
    assert told["GPS:GPSLatitude"] == 52.5
    assert told["XMP-iptcExt:DigitalSourceType"] == DIGITAL_SOURCE_TYPE
    assert str(told["ICC_Profile:ProfileDescription"]).startswith("sRGB")


@needs_exiftool
@pytest.mark.parametrize("output", OUTPUTS)
def test_exiftool_finds_nothing_but_the_profile_after_strip(tmp_path, output):
    told = exiftool(result_of(tmp_path, camera_jpeg(), output_format=output, metadata="strip"))
    assert told["Composite:ImageSize"] == "24 32"
    assert not [name for name in told if name.startswith(("XMP", "GPS", "ExifIFD"))]
    assert "IFD0:Make" not in told
    assert str(told["ICC_Profile:ProfileDescription"]).startswith("sRGB")


@needs_identify
@pytest.mark.parametrize("output", OUTPUTS)
def test_imagemagick_reads_each_format_in_its_size(tmp_path, output):
    path = result_of(tmp_path, camera_jpeg(), output_format=output)
    kind, width, height, depth, orientation = identify(path, "%m", "%w", "%h", "%z", "%[orientation]")
    assert kind in (IS_TOLD_AS[output], "HEIC" if output == "avif" else "")  # by the name of the container
    assert (width, height, depth) == ("24", "32", "8")
    assert orientation in ("TopLeft", "Undefined")


@needs_identify
@pytest.mark.parametrize("output", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_imagemagick_finds_all_16_bits_of_each_sample(tmp_path, kind, channels, output):
    samples = noise(channels=channels, dtype=np.uint16)
    if channels == 4:
        samples[..., 3] = 40_967  # alpha is enlarged smoothly: only where it is even it stays what it was
    data = png_of(samples, {1: 0, 3: 2, 4: 6}[channels]) if kind == "png" else tiff_of(samples)
    path = result_of(tmp_path, data, output_format=output)
    assert identify(path, "%z", "%w", "%h") == ["16", "32", "24"]
    for x, y in ((0, 0), (15, 11), (3, 7)):
        expected = np.concatenate([samples[y, x], np.array([65535], np.uint16)])[: max(channels, 4)] / 65535
        expected = expected if channels >= 3 else np.repeat(expected[:1], 3)
        found = values_at(path, 2 * x, 2 * y)[: len(expected)]
        np.testing.assert_allclose(found, expected, atol=0.6 / 65535)


def half_clear() -> bytes:
    """A PNG 16x12 whose left half is fully transparent."""
    picture = np.full((12, 16, 4), (30, 200, 200, 255), np.uint8)
    picture[:, :8, 3] = 0
    return saved(Image.fromarray(picture), "PNG")


@needs_identify
@pytest.mark.parametrize("output", ["png", "jpeg", "webp", "tiff"])
def test_imagemagick_finds_the_alpha_of_each_pixel_or_white_behind_it(tmp_path, output):
    path = result_of(tmp_path, half_clear(), output_format=output, quality=95)
    clear, opaque = values_at(path, 2, 12), values_at(path, 29, 12)
    assert identify(path, "%A") == (["False"] if output == "jpeg" else ["True"])
    if output == "jpeg":
        assert min(clear[:3]) > 0.98
    else:
        assert clear[3] < 0.02
    np.testing.assert_allclose(opaque, [30 / 255, 200 / 255, 200 / 255, 1], atol=0.02)


@needs_exiftool
def test_exiftool_finds_the_alpha_of_an_avif(tmp_path):
    """ImageMagick's version 6 does not read it."""
    told = exiftool(result_of(tmp_path, half_clear(), output_format="avif"))
    assert str(told["QuickTime:AuxiliaryImageType"]).endswith(":alpha")
    assert "QuickTime:AuxiliaryImageType" not in exiftool(result_of(tmp_path, camera_jpeg(), output_format="avif"))


@needs_identify
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"scale": 1.5}, ["24", "18"]),
        ({"scale": 4}, ["64", "48"]),
        ({"width": 33}, ["33", "25"]),
        ({"width": 40, "height": 31}, ["40", "31"]),
        ({"megapixels": 0.0012}, ["40", "30"]),
    ],
)
def test_imagemagick_finds_exactly_the_size_that_was_asked_for(tmp_path, options, size):
    given = {"scale": None, **options}
    path = result_of(tmp_path, saved(Image.fromarray(noise()), "PNG"), **given)
    assert identify(path, "%w", "%h") == size


@needs_exiftool
def test_exiftool_agrees_on_the_metadata_of_a_heic(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "a phone"
    data = heic_of(Image.fromarray(noise(96, 80)), exif=exif.tobytes(), icc_profile=SRGB)
    (tmp_path / "photo.heic").write_bytes(data)
    before, after = exiftool(tmp_path / "photo.heic"), exiftool(result_of(tmp_path, data))
    for name in ("IFD0:Make", "ICC_Profile:ProfileDescription"):
        assert before[name] == after[name]
    assert (before["Composite:ImageSize"], after["Composite:ImageSize"]) == ("96 80", "192 160")
