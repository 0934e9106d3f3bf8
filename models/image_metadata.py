"""What travels beside the pixels: EXIF worth keeping, ICC profiles, the mark of an enhanced image."""

import struct
import zlib

from PIL import Image
from PIL.ExifTags import IFD, Base

# Without this mark a viewer cannot tell invented detail from recorded detail (IPTC Photo Metadata 2023.1).
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"
XMP_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
).encode()

# A list of what to keep: a TIFF mixes these with tags that describe its own bytes (strips, compression),
# which would be lies in the next file. The thumbnail is left behind, it shows the image before.
DESCRIPTIVE_TAGS = (
    Base.ImageDescription,
    Base.Make,
    Base.Model,
    Base.XResolution,
    Base.YResolution,
    Base.ResolutionUnit,
    Base.Software,
    Base.DateTime,
    Base.Artist,
    Base.HostComputer,
    Base.Rating,
    Base.Copyright,
    Base.XPTitle,
    Base.XPComment,
    Base.XPAuthor,
    Base.XPKeywords,
    Base.XPSubject,
)
# Sizes change; the interoperability pointer is an offset into the file it came from.
STALE_EXIF_TAGS = (Base.ExifImageWidth, Base.ExifImageHeight, Base.ExifInteroperabilityOffset)


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 when there is none or it makes no sense."""
    try:
        value = image.getexif().get(Base.Orientation, 1)
    except Exception:  # a photograph with broken EXIF is still a photograph
        return 1
    return value if value in range(1, 9) else 1


def read_exif(image: Image.Image) -> bytes | None:
    """The descriptive part of the EXIF block ("Exif\\0\\0..."), orientation reset to 1, or None."""
    try:
        source, kept = image.getexif(), Image.Exif()
        for tag in DESCRIPTIVE_TAGS:
            if tag in source:
                kept[tag] = source[tag]
        for directory in (IFD.Exif, IFD.GPSInfo):
            tags = {k: v for k, v in source.get_ifd(directory).items() if k not in STALE_EXIF_TAGS}
            if tags:
                kept[directory] = tags
        if not len(kept):
            return None
        kept[Base.Orientation] = 1
        return kept.tobytes()
    except Exception:  # as above: values of the wrong type, offsets that point nowhere
        return None


def exif_for_size(exif: bytes, width: int, height: int) -> Image.Exif:
    """The kept EXIF with the pixel size of the new image in it."""
    updated = Image.Exif()
    updated.load(exif)
    details = dict(updated.get_ifd(IFD.Exif))
    details[Base.ExifImageWidth], details[Base.ExifImageHeight] = width, height
    location = dict(updated.get_ifd(IFD.GPSInfo))
    updated[IFD.Exif] = details
    if location:
        updated[IFD.GPSInfo] = location
    return updated


def profile_fits(profile: bytes | None, is_gray: bool) -> bool:
    """Whether an ICC profile is one and describes gray (or RGB) pixels; a wrong one spoils the colours."""
    if profile is None or len(profile) < 132 or profile[36:40] != b"acsp":
        return False
    return profile[16:20] == (b"GRAY" if is_gray else b"RGB ")


def add_png_chunks(png: bytes, icc_profile: bytes | None, exif: bytes | None, xmp: bytes | None) -> bytes:
    """A PNG with metadata chunks put where the standard wants them, right after its header."""
    chunks = b""
    if icc_profile:
        chunks += png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile))
    if exif:
        chunks += png_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    if xmp:
        # keyword, not compressed, no language, no translated keyword: the form the XMP specification asks for
        chunks += png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    header_end = 8 + 25  # signature and IHDR, both of fixed length
    return png[:header_end] + chunks + png[header_end:]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
