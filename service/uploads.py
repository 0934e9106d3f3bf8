"""Uploads: reading the form of POST /v1/upscale and screening its file before anything else touches it."""

import hashlib
import io
import threading
from dataclasses import dataclass

from fastapi import Request
from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from jobs import InputInfo, JobError, Settings, UpscaleRequest, find_profile
from service.problems import invalid_option

# Formats by Pillow's names; nothing else is tried, whatever Pillow could read.
INPUT_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF")
_READABLE = "PNG, JPEG, WebP, AVIF and TIFF"
MAX_FIELD_BYTES = 64 * 1024
MAX_FIELDS = 40
_EXIF_ORIENTATION = 0x0112
_DECODES_AT_ONCE = threading.BoundedSemaphore(2)  # each may hold a whole image in memory


@dataclass(frozen=True)
class Upload:
    """One accepted form: the file byte for byte, what it is, and what to do with it."""

    data: bytes
    input: InputInfo
    options: UpscaleRequest


@dataclass(frozen=True)
class FilePart:
    """One file of a form: the name its sender gave it, and its bytes."""

    name: str
    data: bytes


async def read_form(request: Request) -> tuple[bytes, dict[str, str]]:
    """The file's bytes and the other fields of a multipart body.

    Raises JobError malformed-form, missing-file, empty-file, invalid-option (a field twice), body-too-large.
    """
    files, fields = await read_files(request, max_files=1)
    check_not_empty(files[0])
    return files[0].data, fields


async def read_files(request: Request, *, max_files: int) -> tuple[list[FilePart], dict[str, str]]:
    """The files of a multipart body in their order, one at least, and its other fields.

    Raises as `read_form`, but not empty-file; too-many-files where more than one is allowed.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise JobError("malformed-form", "Send multipart/form-data with a field 'file'.")
    try:
        form = await request.form(max_files=max_files, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    except HTTPException as error:
        is_too_many = max_files > 1 and error.detail.startswith("Too many files")
        code = "too-many-files" if is_too_many else "malformed-form"
        raise JobError(code, f"{error.detail.rstrip('.')}.") from error
    files: list[FilePart] = []
    fields: dict[str, str] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "file":
                    raise JobError("invalid-option", f"{name}: the file belongs in 'file'.", field=name)
                files.append(FilePart(value.filename or "", await value.read()))
            elif name == "modalities" and name in fields:
                fields[name] += "," + value
            elif name in fields:
                raise JobError("invalid-option", f"{name}: given twice.", field=name)
            elif value.strip():  # a browser sends untouched fields as empty ones
                fields[name] = value
    finally:
        await form.close()
    if not files:
        raise JobError("missing-file", "Send the image as the file of a field 'file'.", field="file")
    return files, fields


def check_not_empty(file: FilePart) -> None:
    """Raises JobError empty-file."""
    if not file.data:
        raise JobError("empty-file", "The file has 0 bytes.", field="file")


def read_options(fields: dict[str, str], settings: Settings) -> UpscaleRequest:
    """The options of a form, checked against what this server offers.

    Raises JobError invalid-option (for unknown fields too), unknown-profile or profile-not-installed.
    """
    for name in fields:
        if name not in UpscaleRequest.model_fields:
            known = ", ".join(("file", *UpscaleRequest.model_fields))
            raise JobError("invalid-option", f"{name}: no such field. Known are {known}.", field=name)
    try:
        options = UpscaleRequest.model_validate({"profile": settings.default_profile, **fields})
    except ValidationError as error:
        raise invalid_option(error) from error
    return check_offer(options, settings)


def check_offer(options: UpscaleRequest, settings: Settings) -> UpscaleRequest:
    """The same options, once it is sure that this server offers them.

    Raises JobError invalid-option, unknown-profile or profile-not-installed.
    """
    find_profile(options.profile)
    if options.profile not in settings.profiles:
        served = ", ".join(settings.profiles)
        raise JobError("profile-not-installed", f"This server serves {served}.", field="profile")
    if options.ttl_seconds is not None and options.ttl_seconds > settings.ttl_seconds:
        raise JobError(
            "invalid-option",
            f"ttl_seconds: this server keeps jobs for {settings.ttl_seconds} s at most.",
            field="ttl_seconds",
        )
    return options


def screen_image(data: bytes, options: UpscaleRequest, settings: Settings) -> InputInfo:
    """What the image is, once it is sure that a worker can read it.

    Pixels are counted from the header, before one of them is decoded.
    Raises JobError unsupported-format, too-many-pixels, animated-image, invalid-image or invalid-option.
    """
    with _open(data) as image:
        width, height = image.size
        _check_pixels("The image", width, height, settings.max_input_pixels)
        _refuse_animation(image)
        image_format = "jpeg" if image.format == "MPO" else str(image.format).lower()
        if _is_lying_on_its_side(image):
            width, height = height, width
    check_sizes(options, width, height, settings)
    _decode(data)
    return InputInfo(
        width=width,
        height=height,
        format=image_format,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def check_sizes(options: UpscaleRequest, width: int, height: int, settings: Settings) -> tuple[int, int]:
    """Width and height of the result of an input of width x height pixels.

    Raises JobError too-many-pixels or invalid-option when this server does not take the one or make the other.
    """
    _check_pixels("The image", width, height, settings.max_input_pixels)
    size = options.output_size(width, height)
    _check_pixels("The result", *size, settings.max_output_pixels)
    return size


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=INPUT_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise JobError("too-many-pixels", f"{error}", field="file") from error
    except UnidentifiedImageError as error:
        detail = f"The file is none of {_READABLE}, or its header is damaged."
        raise JobError("unsupported-format", detail, field="file") from error
    except Exception as error:  # a parser fed with garbage may raise anything
        raise _invalid_image(error) from error


def _check_pixels(what: str, width: int, height: int, limit_pixels: int) -> None:
    if width * height > limit_pixels:
        detail = (
            f"{what} has {width}x{height} = {width * height / 1e6:.1f} megapixels; "
            f"this server takes {limit_pixels / 1e6:g}."
        )
        raise JobError("too-many-pixels", detail, field="file")


def _refuse_animation(image: Image.Image) -> None:
    if image.format == "MPO":
        # What phones write into .jpg files: the first picture is the photograph, the others its previews.
        return
    try:
        # One step, not n_frames: counting walks all pages of a TIFF, and a file may claim millions.
        image.seek(1)
    except EOFError:
        return
    except Exception as error:
        raise _invalid_image(error) from error
    raise JobError("animated-image", "Send one picture: the file has more than one frame or page.", field="file")


def _is_lying_on_its_side(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # damaged EXIF is no reason to refuse a picture
        return False


def _decode(data: bytes) -> None:
    # Decoded once and thrown away: a truncated file is told now and not by a failed job.
    with _DECODES_AT_ONCE, _open(data) as image:
        try:
            image.load()
        except Exception as error:
            raise _invalid_image(error) from error


def _invalid_image(error: Exception) -> JobError:
    return JobError("invalid-image", f"The image cannot be read: {error}.".replace("..", "."), field="file")
