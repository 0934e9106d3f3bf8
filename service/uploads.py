"""Uploads: reading the form of POST /v1/upscale and screening its file before anything else touches it."""

import hashlib
from dataclasses import dataclass

from fastapi import Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from jobs import InputInfo, JobError, Settings, UpscaleRequest, find_profile
from service.decoding import Decoders, ImageFacts, Limits
from service.fetching import Fetcher
from service.problems import invalid_option
from service.waiting import Seat

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


@dataclass(frozen=True)
class FilePart:
    """One file of a form: the name its sender gave it, and its bytes."""

    name: str
    data: bytes


async def read_form(request: Request, fetcher: Fetcher, seat: Seat) -> tuple[bytes, dict[str, str]]:
    """The bytes of the file, sent or fetched from the field `url`, and the other fields of a multipart body.

    Raises JobError malformed-form, missing-file, empty-file, invalid-option (a field twice), body-too-large,
    decoders-busy (no room in memory), and what `Fetcher.fetch` raises.
    """
    files, fields = await _read_parts(request, 1, seat)
    url = fields.pop("url", None)
    if files and url is not None:
        raise JobError("invalid-option", "url: send a file or its url, not both.", field="url")
    if url is not None:
        data = await fetcher.fetch(url)
        seat.hold(len(data))
        return data, fields
    check_not_empty(_require(files)[0])
    return files[0].data, fields


async def read_files(request: Request, seat: Seat, *, max_files: int) -> tuple[list[FilePart], dict[str, str]]:
    """The files of a multipart body in their order, one at least, and its other fields.

    Raises as `read_form`, but not empty-file; too-many-files where more than one is allowed.
    """
    files, fields = await _read_parts(request, max_files, seat)
    return _require(files), fields


def _require(files: list[FilePart]) -> list[FilePart]:
    if not files:
        raise JobError("missing-file", "Send the image as the file of a field 'file'.", field="file")
    return files


async def _read_parts(request: Request, max_files: int, seat: Seat) -> tuple[list[FilePart], dict[str, str]]:
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
                seat.hold(value.size or 0)
                files.append(FilePart(value.filename or "", await value.read()))
            elif name == "modalities" and name in fields:
                fields[name] += "," + value
            elif name in fields:
                raise JobError("invalid-option", f"{name}: given twice.", field=name)
            elif value.strip():  # a browser sends untouched fields as empty ones
                fields[name] = value
    finally:
        await form.close()
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
    profile = find_profile(options.profile)
    if profile.name not in settings.profiles:
        served = f"This server serves {', '.join(settings.profiles)}, not '{profile.name}'."
        advice = f" To its operator: {profile.how_to_install}" if profile.how_to_install else ""
        raise JobError("profile-not-installed", served + advice, field="profile")
    profile.steps_of(options)  # refuses a preset that it has not
    if options.ttl_seconds is not None and options.ttl_seconds > settings.ttl_seconds:
        raise JobError(
            "invalid-option",
            f"ttl_seconds: this server keeps jobs for {settings.ttl_seconds} s at most.",
            field="ttl_seconds",
        )
    return options


async def screen_image(data: bytes, options: UpscaleRequest, settings: Settings, seat: Seat) -> InputInfo:
    """What the image is, once it is sure that a worker can read it.

    Pixels are counted from the header, before one of them is decoded. Raises JobError unsupported-format,
    too-many-pixels, animated-image, invalid-image, costly-image, invalid-option or decoders-busy.
    """
    limits = Limits(
        header_seconds=settings.decode_seconds * _HEADER_SHARE,
        seconds=settings.decode_seconds,
        wall_seconds=settings.decode_wall_seconds,
        megabytes=settings.decode_megabytes,
    )

    def check(facts: ImageFacts) -> None:
        check_sizes(options, facts.width, facts.height, settings)

    facts = await _DECODERS.examine(data, check, limits, seat)
    check(facts)  # again: a PNG may tell behind its pixels that it lies on its side
    digest = await run_in_threadpool(hashlib.sha256, data)
    return InputInfo(
        width=facts.width,
        height=facts.height,
        format=facts.format,
        bytes=len(data),
        sha256=digest.hexdigest(),
    )


def check_sizes(options: UpscaleRequest, width: int, height: int, settings: Settings) -> tuple[int, int]:
    """Width and height of the result of an input of width x height pixels.

    Raises JobError too-many-pixels or invalid-option when this server does not take the one or make the other.
    """
    _check_pixels("The image", width, height, settings.max_input_pixels)
    size = options.output_size(width, height)
    _check_pixels("The result", *size, settings.max_output_pixels)
    return size


def _check_pixels(what: str, width: int, height: int, limit_pixels: int) -> None:
    if width * height > limit_pixels:
        detail = (
            f"{what} has {width}x{height} = {width * height / 1e6:.1f} megapixels; "
            f"this server takes {limit_pixels / 1e6:g}."
        )
        raise JobError("too-many-pixels", detail, field="file")
