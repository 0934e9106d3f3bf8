"""HEIC files for tests; what reads them in the product cannot write them."""

import io

import pillow_heif
from PIL import Image


def heic_of(
    image: Image.Image, *more: Image.Image, quality: int = 90, exif: bytes = b"", icc_profile: bytes | None = None
) -> bytes:
    """A HEIC of one picture, or of several. exif: "Exif\\0\\0..."; its orientation is also stored as HEIC's own."""
    container = pillow_heif.from_pillow(image)
    if exif:
        container.info["exif"] = exif
    if icc_profile:
        container.info["icc_profile"], container.info["icc_profile_type"] = icc_profile, "prof"
    for another in more:
        container.add_from_pillow(another)
    file = io.BytesIO()
    container.save(file, quality=quality)
    return file.getvalue()
