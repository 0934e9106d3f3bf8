"""Uploads: reading the form of POST /v1/upscale and screening its file before anything else touches it."""

import hashlib
from dataclasses import dataclass

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from jobs import InputInfo, JobError, Settings, UpscaleRequest, find_profile
from service.decoding import Decoders, ImageFacts
from service.problems import invalid_option

MAX_FIELD_BYTES = 64 * 1024
MAX_FIELDS = 40
# The header costs a photograph a millisecond; a file that needs more of the time is made to cost.
_HEADER_SHARE = 0.2
_DECODERS = Decoders()  # starts nothing before the first upload


@dataclass(frozen=True)
class Upload:
    """One accepted form: the file byte for byte, what it is, and what to do with it."""

    data: bytes
    input: InputInfo
    options: UpscaleRequest


async def read_form(request: Request) -> tuple[bytes, dict[str, str]]:
    """The file's bytes and the other fields of a multipart body.

    Raises JobError malformed-form, missing-file, empty-file, invalid-option (a field twice), body-too-large.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise JobError("malformed-form", "Send multipart/form-data with a field 'file'.")
    try:
        form = await request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    except HTTPException as error:
        raise JobError("malformed-form", f"{error.detail.rstrip('.')}.") from error
    data: bytes | None = None
    fields: dict[str, str] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "file":
                    raise JobError("invalid-option", f"{name}: the file belongs in 'file'.", field=name)
                data = await value.read()
            elif name == "modalities" and name in fields:
                fields[name] += "," + value
            elif name in fields:
                raise JobError("invalid-option", f"{name}: given twice.", field=name)
            elif value.strip():  # a browser sends untouched fields as empty ones
                fields[name] = value
    finally:
        await form.close()
    if data is None:
        raise JobError("missing-file", "Send the image as the file of a field 'file'.", field="file")
    if not data:
        raise JobError("empty-file", "The file has 0 bytes.", field="file")
    return data, fields


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

    Pixels are counted from the header, before one of them is decoded. Raises JobError unsupported-format,
    too-many-pixels, animated-image, invalid-image, costly-image or invalid-option.
    """
    seconds, megabytes = settings.decode_seconds, settings.decode_megabytes
    header = _DECODERS.examine(data, is_whole=False, seconds=seconds * _HEADER_SHARE, megabytes=megabytes)
    _check_size(header, options, settings)
    facts = _DECODERS.examine(data, is_whole=True, seconds=seconds, megabytes=megabytes)
    _check_size(facts, options, settings)  # a PNG may tell behind its pixels that it lies on its side
    return InputInfo(
        width=facts.width,
        height=facts.height,
        format=facts.format,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _check_size(facts: ImageFacts, options: UpscaleRequest, settings: Settings) -> None:
    _check_pixels("The image", facts.width, facts.height, settings.max_input_pixels)
    sr_width, sr_height = options.output_size(facts.width, facts.height)
    _check_pixels("The result", sr_width, sr_height, settings.max_output_pixels)


def _check_pixels(what: str, width: int, height: int, limit_pixels: int) -> None:
    if width * height > limit_pixels:
        detail = (
            f"{what} has {width}x{height} = {width * height / 1e6:.1f} megapixels; "
            f"this server takes {limit_pixels / 1e6:g}."
        )
        raise JobError("too-many-pixels", detail, field="file")
