"""Image files by hand, chunk by chunk: what no image library would write."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.heic import heic_of

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SHORT, LONG, UNDEFINED = 3, 4, 7  # TIFF field types


@dataclass(frozen=True)
class Case:
    """One file of the corpus.

    codes: problem codes it may be refused with; empty: it must be taken. may_pass: it may be taken as well.
    size: (width, height) upright of what is taken. has_alpha, is_gray: what the result must have; None: not told.
    options: form fields.
    """

    name: str
    data: bytes
    codes: frozenset[str] = frozenset()
    may_pass: bool = False
    size: tuple[int, int] | None = None
    has_alpha: bool | None = None
    is_gray: bool | None = None
    file_name: str = "photo.png"
    content_type: str = "image/png"
    options: tuple[tuple[str, str], ...] = ()


def noise(width: int = 16, height: int = 12, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    """(height, width, channels) random samples, the same every time."""
    peak = np.iinfo(dtype).max
    return np.random.default_rng(7).integers(0, peak, (height, width, channels), dtype=dtype, endpoint=True)


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    """The bytes Pillow writes."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def photo(image_format: str, mode: str = "RGB", width: int = 16, height: int = 12, **options: object) -> bytes:
    """A small image of noise as Pillow writes it."""
    samples = Image.fromarray(noise(width, height, 4 if mode.endswith("A") else 3))
    if image_format == "HEIF":
        if isinstance(exif := options.get("exif"), Image.Exif):
            options["exif"] = exif.tobytes()
        return heic_of(samples if mode == "RGBA" else samples.convert(mode), **options)  # type: ignore[arg-type]
    return saved(samples if mode == "RGBA" else samples.convert(mode), image_format, **options)


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    """The IHDR chunk; colour: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(*chunks: bytes, header: bytes | None = None, pixels: bytes | None = None, behind: bytes = b"") -> bytes:
    """A PNG of 8x8 black pixels unless told otherwise; chunks lie before, `behind` after the pixels."""
    body = zlib.compress((b"\0" + bytes(24)) * 8) if pixels is None else pixels
    head = png_header(8, 8) if header is None else header
    return PNG_SIGNATURE + head + b"".join(chunks) + chunk(b"IDAT", body) + behind + chunk(b"IEND")


def png_of(samples: np.ndarray, colour: int, *chunks: bytes) -> bytes:
    """A PNG of (H, W, C) uint8 or uint16 samples."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(samples.dtype.newbyteorder(">")).tobytes() for row in samples)
    header = png_header(width, height, samples.itemsize * 8, colour)
    return png(*chunks, header=header, pixels=zlib.compress(rows))


def deflated_zeros(num_bytes: int) -> bytes:
    """A zlib stream of that many zero bytes, a thousandth as long."""
    whole, rest = divmod(num_bytes, 1 << 20)
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)  # leans on nothing before it
    packer = zlib.compressobj(9, wbits=-15)
    end = packer.compress(bytes(rest)) + packer.flush()
    # Adler-32 of zeros: the first sum stays 1, the second counts the bytes.
    return b"\x78\xda" + block * whole + end + struct.pack(">I", num_bytes % 65_521 << 16 | 1)


Entry = tuple[int, int, int, bytes | int]  # tag, field type, count, value or its bytes


def tiff(entries: list[Entry], pixels: bytes = b"", next_ifd: int = 0, order: str = "<") -> bytes:
    """A TIFF of one directory at byte 8, then the values too long for it, then the pixels at StripOffsets (273)."""
    base = 8 + 2 + 12 * len(entries) + 4
    directory, tail = b"", b""
    long_bytes = sum(len(value) for *_, value in entries if isinstance(value, bytes) and len(value) > 4)
    for tag, kind, count, value in sorted(entries):
        if tag == 273 and value == 0:
            value = base + long_bytes
        if isinstance(value, int):
            packed = struct.pack(order + ("H2x" if kind == SHORT else "I"), value)
        elif len(value) <= 4:
            packed = value.ljust(4, b"\0")
        else:
            packed = struct.pack(order + "I", base + len(tail))
            tail += value
        directory += struct.pack(order + "HHI", tag, kind, count) + packed
    mark = b"II" if order == "<" else b"MM"
    start = mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", len(entries))
    return start + directory + struct.pack(order + "I", next_ifd) + tail + pixels


def tiff_entries(
    width: int, height: int, bits: tuple[int, ...] = (8, 8, 8), *, kind: int = 1, compression: int = 1, size: int = 0
) -> list[Entry]:
    """The tags of a plain image; kind: sample format 1 unsigned, 2 signed, 3 float. size: of the strip in bytes."""
    count, photometric = len(bits), 2 if len(bits) >= 3 else 1
    return [
        (256, LONG, 1, width),
        (257, LONG, 1, height),
        (258, SHORT, count, struct.pack(f"<{count}H", *bits)),
        (259, SHORT, 1, compression),
        (262, SHORT, 1, photometric),
        (273, LONG, 1, 0),
        (277, SHORT, 1, count),
        (278, LONG, 1, height),
        (279, LONG, 1, size or width * height * sum(bits) // 8),
        (339, SHORT, count, struct.pack(f"<{count}H", *[kind] * count)),
    ]


def tiff_of(samples: np.ndarray) -> bytes:
    """A TIFF of (H, W, C) samples of any kind."""
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    bits = (samples.itemsize * 8,) * samples.shape[2]
    pixels = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    return tiff(tiff_entries(samples.shape[1], samples.shape[0], bits, kind=kind), pixels)


def jpeg_segment(marker: int, body: bytes) -> bytes:
    """A JPEG segment of up to 65533 bytes."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(segments: bytes, jpeg: bytes | None = None) -> bytes:
    """A JPEG with segments put behind its first marker."""
    jpeg = photo("JPEG") if jpeg is None else jpeg
    return jpeg[:2] + segments + jpeg[2:]


def webp_with(*chunks: tuple[bytes, bytes], base: bytes | None = None) -> bytes:
    """A WebP with chunks at its end."""
    base = photo("WEBP", lossless=True) if base is None else base
    tail = b"".join(kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for kind, body in chunks)
    return base[:4] + struct.pack("<I", len(base) + len(tail) - 8) + base[8:] + tail
