"""Small files that ask for much: pixels, text, profiles, chunks, scans, frames."""

import itertools
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.corpus.bad import ANIMATED, ANY, BROKEN
from tests.corpus.containers import (
    LONG,
    UNDEFINED,
    Case,
    chunk,
    deflated_zeros,
    jpeg_segment,
    jpeg_with,
    photo,
    png,
    png_header,
    saved,
    tiff,
    tiff_entries,
    webp_with,
)
from tests.heic import heic_of

TOO_MANY = frozenset({"too-many-pixels"})
COSTLY = frozenset({"costly-image"})
FLOOD_BYTES = 30 << 20  # just below the largest body
SIDE = 4890  # squared: just below the largest input
PHOTOGRAPH, SMALLER_PHOTOGRAPH = (5980, 4000), (4600, 3450)  # of 24 and of 16 megapixels
# The result must fit too, so that it comes to decoding.
HARDLY_LARGER = (("scale", "1.001"), ("maps", "false"))


def bomb_cases(is_full: bool) -> Iterator[Case]:
    """All of them; without is_full those that are quick to make and to refuse."""
    yield from _promises()
    yield from _strips()
    yield from _texts()
    yield from _boxes()
    if is_full:
        yield from _floods()
        yield from _scans(("L", "RGB", "CMYK"))
        yield from _largest()
        yield from _photographs()
    else:
        yield from itertools.islice(_floods(), 1)
        yield from _scans(("L",))


def _promises() -> Iterator[Case]:
    """Headers that claim more pixels than are taken."""
    for width, height in ((65_535, 65_535), (50_000, 50_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (5000, 5000)):
        data = png(header=png_header(width, height), pixels=deflated_zeros(1 << 20))
        yield Case(f"png-claims-{width}x{height}", data, TOO_MANY | BROKEN)
        entries = tiff_entries(width, height, size=99)
        yield Case(f"tiff-claims-{width}x{height}", tiff(entries, bytes(99)), TOO_MANY | BROKEN)
    for side in (16_383, 6000):
        webp = photo("WEBP", lossless=True)
        at = webp.index(b"VP8L") + 9  # 14 bits each of width - 1 and height - 1
        size = struct.pack("<I", (side - 1) | (side - 1) << 14)
        yield Case(f"webp-claims-{side}", webp[:at] + size + webp[at + 4 :], ANY)
    gif = photo("GIF", "P")
    yield Case("gif-claims", gif[:6] + b"\xff\xff\xff\xff" + gif[10:], frozenset({"unsupported-format"}))
    jpeg = photo("JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    yield Case("jpeg-claims", jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :], TOO_MANY | BROKEN)
    for image_format in ("AVIF", "HEIF"):
        data = photo(image_format)
        at = data.index(b"ispe") + 8
        for side in (65_535, 2**31 - 1):
            claim = struct.pack(">II", side, side)
            yield Case(f"{image_format}-claims-{side}", data[:at] + claim + data[at + 8 :], ANY)


def _strips() -> Iterator[Case]:
    """One pixel wide, and as long as a side may be."""
    for size in ((1, 65_535), (65_535, 1)):
        flat = Image.new("RGB", size)
        for image_format in ("PNG", "TIFF"):
            # Four times as long is more than any side may have.
            name = f"{image_format}-{size[0]}x{size[1]}"
            yield Case(name, saved(flat, image_format), ANY, may_pass=True)
            yield Case(f"{name}-hardly", saved(flat, image_format), size=size, options=HARDLY_LARGER)
    yield Case("png-1x65536", saved(Image.new("L", (1, 65_536)), "PNG"), TOO_MANY, options=HARDLY_LARGER)
    yield Case("jpeg-1x65500", saved(Image.new("L", (1, 65_500)), "JPEG"), size=(1, 65_500), options=HARDLY_LARGER)


def _texts() -> Iterator[Case]:
    """Compressed metadata of a thousand times its length."""
    for megabytes in (2, 200, 1000):
        packed = deflated_zeros(megabytes << 20)
        yield Case(f"png-iccp-{megabytes}", png(chunk(b"iCCP", b"a\0\0" + packed)), ANY, may_pass=True)
        yield Case(f"png-ztxt-{megabytes}", png(chunk(b"zTXt", b"a\0\0" + packed)), ANY, may_pass=True)
        yield Case(f"png-itxt-{megabytes}", png(chunk(b"iTXt", b"a\0\1\0\0\0" + packed)), ANY, may_pass=True)
    just_below = chunk(b"zTXt", b"a\0\0" + deflated_zeros((1 << 20) - 99))
    yield Case("png-ztxt-20000", png(just_below * 20_000), ANY)
    yield Case("png-ztxt-behind", png(behind=just_below * 20_000), ANY)
    small_profile = chunk(b"iCCP", b"a\0\0" + deflated_zeros((1 << 20) - 99))
    yield Case("png-iccp-20000", png(small_profile * 20_000), ANY)
    icc = np.random.default_rng(0).bytes(60_000)
    many = b"".join(jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([1 + i % 255, 255]) + icc) for i in range(400))
    yield Case("jpeg-icc-24-mb", jpeg_with(many), ANY, may_pass=True)


def _floods() -> Iterator[Case]:
    """Millions of the smallest parts a format knows."""
    for name, part in (("unknown", chunk(b"abCd")), ("gamma", chunk(b"gAMA", b"\0\0\0\1"))):
        flood = part * (FLOOD_BYTES // len(part))
        yield Case(f"png-flood-{name}", png(flood), COSTLY)
        yield Case(f"png-flood-{name}-behind", png(behind=flood), COSTLY)
    pieces = chunk(b"IDAT") * (FLOOD_BYTES // 12)
    yield Case("png-flood-pixels", png(pieces), COSTLY)
    for name, marker in (("comments", 0xFE), ("exif", 0xE1), ("tables", 0xDB)):
        segment = jpeg_segment(marker, b"")
        yield Case(f"jpeg-flood-{name}", jpeg_with(segment * (FLOOD_BYTES // len(segment))), COSTLY | BROKEN)
    yield Case("jpeg-flood-fill", jpeg_with(b"\xff" * FLOOD_BYTES), ANY, may_pass=True)
    entries = [(40_000 + i, UNDEFINED, 20 << 20, b"") for i in range(2000)]
    yield Case("tiff-flood-tags", tiff(tiff_entries(8, 8) + entries, bytes(21 << 20)), ANY, may_pass=True)
    strips = 2_000_000
    offsets = struct.pack("<I", 200) * strips
    tags = [e for e in tiff_entries(1, strips, (8,)) if e[0] not in (273, 278, 279)]
    tags += [(273, LONG, strips, offsets), (278, LONG, 1, 1), (279, LONG, strips, struct.pack("<I", 1) * strips)]
    yield Case("tiff-flood-strips", tiff(tags), ANY, may_pass=True)
    frame = struct.pack("<II", 0, 0)[:6] + b"\x0f\0\0\x0b\0\0" + b"\x01\0\0\0" + photo("WEBP", lossless=True)[12:]
    anmf = b"ANMF" + struct.pack("<I", len(frame)) + frame + b"\0" * (len(frame) % 2)
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0\x0f\0\0\x0b\0\0" + b"ANIM\x06\0\0\0" + bytes(6)
    body += anmf * 20_000
    yield Case("webp-flood-frames", b"RIFF" + struct.pack("<I", len(body)) + body, ANY)


def _boxes() -> Iterator[Case]:
    """HEIC of very many boxes: without meaning, and where its items are told."""
    heic = photo("HEIF")
    start = struct.unpack(">I", heic[:4])[0]
    free, item = struct.pack(">I", 8) + b"free", struct.pack(">I", 21) + b"infe\2\0\0\0\0\7\0\0hvc1\0"
    yield Case("heic-flood-boxes", heic[:start] + free * (FLOOD_BYTES // 8) + heic[start:], ANY, may_pass=True)
    at = heic.index(b"iinf") - 4
    size = struct.unpack(">I", heic[at : at + 4])[0]
    items = item * 60_000
    iinf = (
        struct.pack(">I", size + len(items)) + heic[at + 4 : at + 12] + b"\xff\xff" + heic[at + 14 : at + size] + items
    )
    meta = heic.index(b"meta") - 4
    longer = struct.pack(">I", struct.unpack(">I", heic[meta : meta + 4])[0] + len(items))
    yield Case("heic-flood-items", heic[:meta] + longer + heic[meta + 4 : at] + iinf + heic[at + size :], ANY)


def _scans(modes: tuple[str, ...]) -> Iterator[Case]:
    """A progressive JPEG whose last scan is told again and again: each goes over all the pixels."""
    for mode in modes:
        jpeg = saved(Image.new(mode, (4880, 4880)), "JPEG", progressive=True)
        scan = jpeg[jpeg.rfind(b"\xff\xc4") : -2]
        data = jpeg[:-2] + scan * ((3 << 20) // len(scan)) + jpeg[-2:]
        yield Case(f"jpeg-scans-{mode}", data, COSTLY, options=HARDLY_LARGER)


def _largest() -> Iterator[Case]:
    """As many pixels as are taken, in few bytes."""
    flat = Image.new("RGB", (SIDE, SIDE))
    for depth, colour, channels in ((8, 2, 3), (16, 6, 4), (1, 0, 1)):
        row_bytes = SIDE * depth * channels // 8 + (depth == 1)
        data = png(header=png_header(SIDE, SIDE, depth, colour), pixels=deflated_zeros((row_bytes + 1) * SIDE))
        yield Case(f"png-largest-{depth}-{channels}", data, size=(SIDE, SIDE), options=HARDLY_LARGER)
    for image_format, options in (
        ("JPEG", {"progressive": True, "subsampling": 0}),
        ("WEBP", {"lossless": True, "method": 0}),
        ("AVIF", {"speed": 10, "subsampling": "4:4:4"}),
        ("TIFF", {"compression": "tiff_deflate"}),
    ):
        data = saved(flat, image_format, **options)
        codes = COSTLY if image_format == "WEBP" else frozenset()  # of its memory
        yield Case(f"{image_format}-largest", data, codes, size=(SIDE, SIDE), options=HARDLY_LARGER)
        yield Case(f"{image_format}-largest-x4", data, TOO_MANY)
    heic = heic_of(flat, quality=10)
    yield Case("heic-largest", heic, size=(SIDE, SIDE), options=HARDLY_LARGER)
    yield Case("heic-largest-x4", heic, TOO_MANY)
    pixels = deflated_zeros(SIDE * SIDE * 3 + 900_000_000)  # far more behind the last row
    yield Case(
        "png-more-rows",
        png(header=png_header(SIDE, SIDE), pixels=pixels),
        ANY,
        may_pass=True,
        options=HARDLY_LARGER,
    )
    packed = zlib.compress(bytes(1000)) + deflated_zeros(500_000_000)
    yield Case(
        "tiff-deflate-bomb", tiff(tiff_entries(64, 64, compression=8, size=len(packed)), packed), ANY, may_pass=True
    )
    frames = [Image.new("RGB", (4800, 4800), (i * 20, 0, 0)) for i in range(3)]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, method=0)
    yield Case("webp-largest-frames", data, ANIMATED, options=HARDLY_LARGER)


def _photographs() -> Iterator[Case]:
    """Whole pictures of 24 megapixels in every format: a soft gradient, and noise as of a camera."""
    large = _photograph(*PHOTOGRAPH)
    quiet = large.point(lambda sample: sample & 0xF0)  # else what is lossless is no body that is taken
    for name, picture, image_format, options in (
        ("jpeg", large, "JPEG", {"quality": 92}),
        ("jpeg-progressive", large, "JPEG", {"quality": 90, "progressive": True, "subsampling": 0}),
        ("jpeg-cmyk", large.convert("CMYK"), "JPEG", {"quality": 85}),
        ("jpeg-cmyk-progressive", large.convert("CMYK"), "JPEG", {"quality": 85, "progressive": True}),
        ("png", quiet, "PNG", {"compress_level": 1}),
        ("png-rgba", quiet.convert("RGBA"), "PNG", {"compress_level": 1}),
        ("tiff", quiet, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("tiff-lzw", quiet, "TIFF", {"compression": "tiff_lzw"}),
        ("avif", large, "AVIF", {"speed": 10, "quality": 85}),
        ("avif-444", large, "AVIF", {"speed": 10, "quality": 85, "subsampling": "4:4:4"}),
    ):
        yield Case(f"{name}-24", saved(picture, image_format, **options), size=PHOTOGRAPH, options=HARDLY_LARGER)
    yield Case("heic-24", heic_of(large, quality=45), size=PHOTOGRAPH, options=HARDLY_LARGER)
    for name, options in (("webp", {"quality": 85, "method": 0}), ("webp-lossless", {"lossless": True, "method": 0})):
        yield Case(f"{name}-24", saved(quiet, "WEBP", **options), COSTLY, options=HARDLY_LARGER)
        smaller = saved(quiet.crop((0, 0, *SMALLER_PHOTOGRAPH)), "WEBP", **options)
        yield Case(f"{name}-16", smaller, size=SMALLER_PHOTOGRAPH, options=HARDLY_LARGER)
        for megabytes in (4, 8, 12, 20):  # up to the limit of memory and beyond
            burdened = webp_with((b"JUNK", bytes(megabytes << 20)), base=smaller)
            yield Case(f"{name}-16-and-{megabytes}", burdened, COSTLY, may_pass=True, options=HARDLY_LARGER)


def _photograph(width: int, height: int) -> Image.Image:
    """Noise is the same in each 512 rows, so that it is quick to make; no format looks that far back."""
    rows = np.linspace(20, 200, height, dtype=np.float32)[:, None, None]
    columns = np.linspace(0, 40, width, dtype=np.float32)[None, :, None] * np.float32([1, 0.5, -0.4])
    noise = np.random.default_rng(3).normal(0, 4, (512, width, 3)).astype(np.float32)
    picture = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 512):
        band = rows[top : top + 512] + columns
        picture[top : top + 512] = np.clip(band + noise[: len(band)], 0, 255)
    return Image.fromarray(picture)
