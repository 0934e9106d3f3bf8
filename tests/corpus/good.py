"""Files that must be taken: every mode, depth, orientation and burden that honest cameras and programs write."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms

from tests.corpus.containers import Case, chunk, jpeg_segment, jpeg_with, noise, photo, png_of, saved, tiff_of

SIZE = (16, 12)
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "HEIF")
OUTPUTS = ("png", "jpeg", "webp", "avif", "tiff")


def good_cases() -> Iterator[Case]:
    """All of them."""
    yield from _modes()
    yield from _deep()
    yield from _palettes()
    yield from _orientations()
    yield from _burdens()
    yield from _lying_names()
    yield from _strips()
    for image_format in FORMATS:
        for output in OUTPUTS:
            options = (("output_format", output), ("scale", "2"))
            yield Case(f"{image_format}-to-{output}", photo(image_format), size=SIZE, options=options)


def _modes() -> Iterator[Case]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        gray, alpha = mode in ("1", "L", "LA"), "A" in mode
        yield Case(f"png-{mode}", photo("PNG", mode), size=SIZE, has_alpha=alpha, is_gray=gray)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        yield Case(f"tiff-{mode}", photo("TIFF", mode), size=SIZE)
        if mode not in ("P", "1", "YCbCr"):
            yield Case(f"tiff-lzw-{mode}", photo("TIFF", mode, compression="tiff_lzw"), size=SIZE)
    for mode in ("L", "RGB", "CMYK"):
        for progressive in (False, True):
            data = photo("JPEG", mode, progressive=progressive)
            yield Case(f"jpeg-{mode}-{progressive}", data, size=SIZE, is_gray=mode == "L", has_alpha=False)
    for name, transform in (("cmyk", 0), ("ycck", 2)):  # Adobe's marker tells how the inks are coded
        bare = photo("JPEG", "CMYK")
        start = bare.index(b"\xff\xee")
        data = bare[: start + 15] + bytes([transform]) + bare[start + 16 :]
        yield Case(f"jpeg-adobe-{name}", data, size=SIZE, is_gray=False)
    for image_format in ("WEBP", "AVIF", "HEIF"):
        for mode in ("RGB", "RGBA"):
            data = photo(image_format, mode, quality=90)
            yield Case(f"{image_format}-{mode}", data, size=SIZE, has_alpha=mode == "RGBA")
    yield Case("webp-lossless", photo("WEBP", "RGBA", lossless=True), size=SIZE, has_alpha=True)
    yield Case("mpo", _mpo(), size=SIZE)
    for depth in (1, 2, 4):
        yield Case(f"png-gray-{depth}", _packed_gray(depth), size=SIZE, is_gray=True)
    yield Case("png-interlaced", _interlaced(), size=(8, 8))


def _mpo() -> bytes:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    return saved(frames[0], "MPO", save_all=True, append_images=frames[1:])


def _packed_gray(depth: int) -> bytes:
    row_bytes = (SIZE[0] * depth + 7) // 8
    rows = (b"\0" + bytes(range(row_bytes))) * SIZE[1]
    header = struct.pack(">IIBBBBB", *SIZE, depth, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _interlaced() -> bytes:
    # Adam7 of 8x8 RGB: the passes' widths and heights
    passes = ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4))
    rows = b"".join((b"\0" + bytes(range(3 * width))) * height for width, height in passes)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _deep() -> Iterator[Case]:
    for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        samples = noise(*SIZE, channels=channels, dtype=np.uint16)
        gray, alpha = channels <= 2, channels in (2, 4)
        yield Case(
            f"png-16-{channels}", png_of(samples, colour), size=SIZE, has_alpha=alpha, is_gray=gray and not alpha
        )
    for channels in (1, 3, 4):
        samples = noise(*SIZE, channels=channels, dtype=np.uint16)
        for output in ("png", "tiff"):
            options = (("output_format", output),)
            yield Case(f"tiff-16-{channels}-{output}", tiff_of(samples), size=SIZE, options=options)


def _palettes() -> Iterator[Case]:
    palette = Image.fromarray(noise(*SIZE)).quantize(16)
    yield Case("palette-opaque", saved(palette, "PNG"), size=SIZE, has_alpha=False)
    yield Case("palette-index", saved(palette, "PNG", transparency=3), size=SIZE, has_alpha=True)
    yield Case("palette-alphas", saved(palette, "PNG", transparency=bytes(range(16))), size=SIZE, has_alpha=True)
    yield Case("rgb-key", photo("PNG", transparency=(1, 2, 3)), size=SIZE, has_alpha=True)
    yield Case("gray-key", photo("PNG", "L", transparency=9), size=SIZE, has_alpha=True)


def _orientations() -> Iterator[Case]:
    for image_format in FORMATS:
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            options = {"tiffinfo": exif} if image_format == "TIFF" else {"exif": exif}
            size = SIZE if orientation < 5 else SIZE[::-1]
            yield Case(f"{image_format}-turn-{orientation}", photo(image_format, **options), size=size)
    exif = Image.Exif()
    exif[0x0112] = 6
    behind = photo("PNG")[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + chunk(b"IEND")
    yield Case("png-turn-behind-the-pixels", behind, size=SIZE[::-1], options=(("width", "48"),))
    exif[0x0112] = 9
    yield Case("jpeg-turn-nonsense", photo("JPEG", exif=exif), size=SIZE)


def _burdens() -> Iterator[Case]:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    large = srgb + np.random.default_rng(1).bytes(800_000)
    for image_format in FORMATS:
        yield Case(f"{image_format}-icc", photo(image_format, icc_profile=srgb), size=SIZE)
        yield Case(f"{image_format}-icc-huge", photo(image_format, icc_profile=large), size=SIZE)
        yield Case(f"{image_format}-icc-nonsense", photo(image_format, icc_profile=b"nonsense"), size=SIZE)
        exif = Image.Exif()
        exif[0x010E] = "x" * 60_000
        options = {"tiffinfo": exif} if image_format == "TIFF" else {"exif": exif}
        yield Case(f"{image_format}-exif-huge", photo(image_format, **options), size=SIZE)
    broken_exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    yield Case("jpeg-exif-broken", photo("JPEG", exif=broken_exif), size=SIZE)
    yield Case("webp-exif-broken", photo("WEBP", exif=broken_exif), size=SIZE)
    yield Case("png-exif-broken", photo("PNG", exif=broken_exif), size=SIZE)
    comments = b"".join(jpeg_segment(0xFE, b"c" * 60_000) for _ in range(20))
    yield Case("jpeg-20-comments", jpeg_with(comments), size=SIZE)


def _lying_names() -> Iterator[Case]:
    names = (("a.jpg", "image/jpeg"), ("a.gif", "image/gif"), ("a.exe", "application/x-msdownload"))
    names += (("../../etc/passwd", "text/html"), ("", "image/png"), ("a.png\u202egpj", "x"), ("n" * 3000, "image/png"))
    for image_format in ("PNG", "WEBP", "AVIF"):
        for i, (file_name, content_type) in enumerate(names):
            if not file_name:
                continue  # a part without a file name is a field
            yield Case(
                f"{image_format}-called-{i}",
                photo(image_format),
                size=SIZE,
                file_name=file_name,
                content_type=content_type,
            )


def _strips() -> Iterator[Case]:
    for image_format in FORMATS:
        for size in ((1, 1), (1, 700), (700, 1)):
            yield Case(f"{image_format}-{size[0]}x{size[1]}", photo(image_format, "RGB", *size), size=size)
