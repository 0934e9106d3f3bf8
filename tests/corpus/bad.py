"""Files that are broken, lie, or are something else: refused, or taken where a decoder can make sense of them."""

import io
import struct
import zipfile
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.corpus.containers import (
    Case,
    chunk,
    noise,
    photo,
    png,
    png_header,
    saved,
    tiff,
    tiff_entries,
    tiff_of,
    webp_with,
)
from tests.corpus.good import FORMATS, SIZE
from tests.heic import heic_of

BROKEN = frozenset({"unsupported-format", "invalid-image"})
UNSUPPORTED = frozenset({"unsupported-format"})
ANIMATED = frozenset({"animated-image"})
ANY = BROKEN | ANIMATED | {"too-many-pixels", "costly-image", "invalid-option"}


def bad_cases() -> Iterator[Case]:
    """All of them."""
    yield Case("zero-bytes", b"", frozenset({"empty-file"}))
    yield from _truncated()
    yield from _flipped()
    yield from _foreign()
    yield from _polyglots()
    yield from _frames()
    yield from _odd_tiffs()
    yield from _odd_pngs()


def _boundaries(data: bytes, image_format: str) -> list[int]:
    """Where the parts of a file's header begin."""
    if image_format == "PNG":
        places, at = [8], 8
        while at < len(data):
            at += 12 + struct.unpack(">I", data[at : at + 4])[0]
            places += [at - 4, at]
    elif image_format == "JPEG":
        places, at = [2], 2
        while data[at + 1] != 0xDA:
            at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
            places += [at, at + 2, at + 4]
    elif image_format == "TIFF":
        offset = struct.unpack("<I", data[4:8])[0]
        count = struct.unpack("<H", data[offset : offset + 2])[0]
        places = [4, 8, offset, offset + 2, *(offset + 2 + 12 * i for i in range(1, count + 1))]
    elif image_format == "WEBP":
        places = [4, 8, 12, 16, 20, 25, 30]
    else:  # AVIF, HEIF: boxes in boxes; every eighth byte of the header hits each of them
        places = list(range(8, data.index(b"mdat") + 8, 8))
    return sorted({place for place in places if place < len(data)})


def _truncated() -> Iterator[Case]:
    for image_format in FORMATS:
        data = photo(image_format, "RGB", 48, 32)
        for place in [1, 3, *_boundaries(data, image_format)]:
            yield Case(f"{image_format}-cut-{place}", data[:place], BROKEN, may_pass=place > len(data) - 40)
        for share in (0.3, 0.6, 0.9):
            yield Case(f"{image_format}-cut-{share}", data[: int(len(data) * share)], BROKEN)


def _flipped() -> Iterator[Case]:
    for image_format in FORMATS:
        data = photo(image_format, "RGB", 48, 32)
        for seed in range(20):
            damage, broken = np.random.default_rng(seed), bytearray(data)
            # Half of them in the header, where the numbers are that a decoder believes.
            for place in damage.integers(0, min(len(data), 200) if seed % 2 else len(data), 1 + seed % 5):
                broken[place] ^= 1 << damage.integers(0, 8)
            yield Case(f"{image_format}-flip-{seed}", bytes(broken), ANY, may_pass=True)


def _foreign() -> Iterator[Case]:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
    for name, data in {
        "svg": svg,
        "svg-entities": b'<!DOCTYPE a [<!ENTITY b "' + b"c" * 9000 + b'">]>' + svg,
        "html": b"<!doctype html><title>x</title><script>alert(1)</script>",
        "elf": b"\x7fELF\x02\x01\x01" + bytes(200),
        "pe": b"MZ" + bytes(300),
        "pdf": b"%PDF-1.7\n1 0 obj<<>>endobj\n",
        "ps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "text": b"hello",
        "zeros": bytes(100_000),
        "random": np.random.default_rng(3).bytes(50_000),
        "gzip": b"\x1f\x8b\x08" + bytes(50),
        "zip": _zip(),
        "mvg": b"push graphic-context\nimage over 0,0 0,0 'https://example.org/'\n",
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(100),
        "fits": b"SIMPLE  =                    T" + b" " * 2850,
    }.items():
        yield Case(f"foreign-{name}", data, UNSUPPORTED)
        yield Case(f"foreign-{name}-as-jpeg", b"\xff\xd8\xff\xe0" + data, BROKEN)
    for image_format in ("GIF", "BMP", "ICO", "PPM", "TGA", "PCX", "JPEG2000", "DDS", "QOI"):
        yield Case(f"foreign-{image_format}", photo(image_format, "RGB"), UNSUPPORTED)


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.html", "<script>alert(1)</script>")
    return file.getvalue()


def _polyglots() -> Iterator[Case]:
    html = b"<script>alert(1)</script>"
    for image_format in FORMATS:
        for name, tail in (("zip", _zip()), ("html", html), ("elf", b"\x7fELF" + bytes(64))):
            yield Case(f"{image_format}-then-{name}", photo(image_format) + tail, BROKEN, may_pass=True)
    for name, tail in (("zip", _zip()), ("html", html)):
        jpeg = photo("JPEG", comment=tail)
        yield Case(f"jpeg-comment-{name}", jpeg, size=SIZE)
        yield Case(f"png-text-{name}", png(chunk(b"tEXt", b"a\0" + tail)), size=(8, 8))
    yield Case("gif-then-png", photo("GIF", "P") + photo("PNG"), UNSUPPORTED)
    yield Case("html-then-jpeg", html + photo("JPEG"), UNSUPPORTED)


def _frames() -> Iterator[Case]:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue", "green")]
    for image_format in ("PNG", "WEBP", "TIFF", "AVIF"):
        yield Case(
            f"{image_format}-3-frames",
            saved(frames[0], image_format, save_all=True, append_images=frames[1:]),
            ANIMATED,
        )
    yield Case("heic-3-pictures", heic_of(*frames), ANIMATED)
    yield Case("gif-3-frames", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), UNSUPPORTED)
    many = [Image.new("RGB", SIZE, (i % 256, i // 256 * 40, 9)) for i in range(600)]
    for image_format in ("PNG", "WEBP", "TIFF"):
        yield Case(
            f"{image_format}-600-frames", saved(many[0], image_format, save_all=True, append_images=many[1:]), ANIMATED
        )


def _odd_tiffs() -> Iterator[Case]:
    samples = noise(*SIZE)
    pixels = samples.tobytes()
    entries = tiff_entries(*SIZE)
    taken = tiff(entries, pixels)
    yield Case("tiff-by-hand", taken, size=SIZE)
    yield Case("tiff-ifd-to-itself", tiff(entries, pixels, next_ifd=8), BROKEN | ANIMATED, may_pass=True)
    yield Case("tiff-ifd-beyond", tiff(entries, pixels, next_ifd=1 << 30), BROKEN | ANIMATED, may_pass=True)
    second = len(taken)
    ring = tiff(entries, pixels, next_ifd=second) + taken[8 : 10 + 12 * len(entries)] + struct.pack("<I", 8)
    yield Case("tiff-ifd-ring", ring, ANIMATED)
    yield Case("tiff-first-ifd-to-header", b"II*\0" + struct.pack("<I", 0) + pixels, BROKEN)
    exif_ring = tiff([*entries, (34665, 4, 1, 8)], pixels)
    yield Case("tiff-exif-to-its-own-directory", exif_ring, BROKEN, may_pass=True)
    floats = np.linspace(0, 1, 192, dtype=np.float32).reshape(12, 16, 1)
    yield Case("tiff-float", tiff_of(floats), UNSUPPORTED)
    yield Case("tiff-float-nan", tiff_of(np.where(floats > 0.5, np.nan, floats)), UNSUPPORTED)
    yield Case("tiff-float-inf", tiff_of(np.full_like(floats, np.inf)), BROKEN)
    yield Case("tiff-float-rgb", tiff_of(np.repeat(floats, 3, axis=2)), BROKEN)
    yield Case("tiff-double", tiff_of(floats.astype(np.float64)), BROKEN)
    for dtype in (np.int8, np.int16, np.int32, np.uint32):
        yield Case(f"tiff-{dtype.__name__}", tiff_of(noise(*SIZE, channels=1, dtype=dtype)), BROKEN)
    for tag, value in ((256, 0), (257, 0), (259, 9999), (262, 77), (277, 0), (277, 60_000), (258, 3), (278, 0)):
        changed = [(t, k, 1 if t == tag else c, value if t == tag else v) for t, k, c, v in entries]
        yield Case(f"tiff-tag-{tag}-is-{value}", tiff(changed, pixels), ANY, may_pass=True)
    for tag in (256, 257, 258, 259, 262, 273, 277, 279):
        yield Case(f"tiff-without-{tag}", tiff([e for e in entries if e[0] != tag], pixels), ANY, may_pass=True)
    yield Case("tiff-strip-beyond", tiff([e if e[0] != 273 else (273, 4, 1, 1 << 31) for e in entries], pixels), BROKEN)
    yield Case("bigtiff-header", b"II+\0\x08\0\0\0" + bytes(60), BROKEN)
    yield Case("tiff-lab", photo("TIFF", "LAB"), UNSUPPORTED)


def _odd_pngs() -> Iterator[Case]:
    yield Case("png-no-pixels", png(pixels=b""), BROKEN)
    yield Case("png-no-header", b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"x") + chunk(b"IEND"), BROKEN)
    yield Case("png-zero-wide", png(header=png_header(0, 8)), BROKEN)
    yield Case("png-depth-3", png(header=png_header(8, 8, 3)), BROKEN)
    yield Case("png-colour-5", png(header=png_header(8, 8, 8, 5)), BROKEN)
    yield Case("png-palette-missing", png(header=png_header(8, 8, 8, 3)), BROKEN, may_pass=True)
    yield Case("png-two-headers", png(png_header(9000, 9000)), ANY, may_pass=True)
    yield Case("png-chunk-2-gb", png(struct.pack(">I", 2**31 - 1) + b"tEXt" + bytes(50)), BROKEN, may_pass=True)
    yield Case("png-critical-unknown", png(chunk(b"ABCD", bytes(9))), BROKEN, may_pass=True)
    yield Case("png-iccp-no-zlib", png(chunk(b"iCCP", b"a\0\0notzlib")), BROKEN, may_pass=True)
    yield Case("png-trns-too-long", png(chunk(b"tRNS", bytes(2000))), BROKEN, may_pass=True)
    yield Case("png-xmp-entities", png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<!DOCTYPE x>" * 9)), size=(8, 8))
    yield Case("png-actl-of-one", png(chunk(b"acTL", struct.pack(">II", 1, 0))), ANY, may_pass=True)
    yield Case("png-actl-of-4-billion", png(chunk(b"acTL", struct.pack(">II", 2**32 - 1, 0))), ANY, may_pass=True)
    yield Case("webp-foreign-chunk", webp_with((b"ABCD", bytes(99))), BROKEN, may_pass=True)
    yield Case("webp-xmp", webp_with((b"XMP ", b"<x/>")), BROKEN, may_pass=True)
