"""A TIFF writer for 8 and 16 bits with metadata; Pillow writes no 16-bit colour, OpenCV no metadata."""

import io
import zlib

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

STRIP_BYTES = 1 << 20
DEFLATE, HORIZONTAL_DIFFERENCES, UNASSOCIATED_ALPHA, UNSIGNED = 8, 2, 2, 1
BYTE, LONG, UNDEFINED = 1, 4, 7  # TIFF field types


def encode_tiff(samples: np.ndarray, icc_profile: bytes | None, exif: Image.Exif | None, xmp: bytes | None) -> bytes:
    """Writes (H, W, C) uint8 or uint16, C = 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha. Lossless."""
    height, width, channels = samples.shape
    rows_per_strip = max(1, STRIP_BYTES // samples[0].nbytes)
    strips = [pack_strip(samples[top : top + rows_per_strip]) for top in range(0, height, rows_per_strip)]
    directory = ImageFileDirectory_v2()  # little-endian
    if exif is not None:
        for tag, value in exif.items():  # EXIF is itself such a directory, its sub-directories are dicts
            directory[tag] = value
    directory[256], directory[257] = width, height
    directory[258] = (samples.itemsize * 8,) * channels
    directory[259] = DEFLATE
    directory[262] = 1 if channels <= 2 else 2  # black is zero, or RGB
    directory[274] = 1  # upright
    directory[277], directory[278] = channels, rows_per_strip
    directory[284] = 1  # channels side by side
    directory[317] = HORIZONTAL_DIFFERENCES
    if channels in (2, 4):
        directory[338] = UNASSOCIATED_ALPHA
    directory[339] = (UNSIGNED,) * channels
    for tag, kind, value in ((34675, UNDEFINED, icc_profile), (700, BYTE, xmp)):
        if value:
            directory.tagtype[tag] = kind
            directory[tag] = value
    sizes = [len(strip) for strip in strips]
    directory.tagtype[273] = directory.tagtype[279] = LONG
    directory[279] = tuple(sizes)
    # Offsets from the end of the directory; the directory adds its own length when it is written.
    directory[273] = tuple(sum(sizes[:i]) for i in range(len(sizes)))
    output = io.BytesIO()
    directory.save(output)
    output.write(b"".join(strips))
    return output.getvalue()


def pack_strip(strip: np.ndarray) -> bytes:
    """Deflates rows (H, W, C) as differences to the left neighbour, modulo the sample's range."""
    differences = strip.astype(strip.dtype.newbyteorder("<"))
    differences[:, 1:] -= strip[:, :-1]
    return zlib.compress(differences.tobytes(), 6)
