"""Image files to float arrays and back: 8 and 16 bit, alpha, orientation, colour profiles and metadata."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pi_heif
from PIL import Image, ImageCms, UnidentifiedImageError

from models.image_metadata import (
    XMP_PACKET,
    add_png_chunks,
    exif_for_size,
    profile_fits,
    read_exif,
    read_orientation,
)
from models.tiff import encode_tiff

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "HEIF")
BITS_PER_SAMPLE, PHOTOMETRIC, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 262, 338, 339  # TIFF tags
GRAY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
OUTPUT_FORMATS = ("png", "jpeg", "webp", "avif", "tiff")
DEEP_FORMATS = ("png", "tiff")  # those that can carry 16 bits
# Of zlib, by OpenCV: half of Pillow's time at the same level; photographs become 2 % smaller, results up to 7 % larger.
PNG_LEVEL = 4
DEEP_PNG_LEVEL = 6  # for 16 bits
DEFAULT_QUALITY = {"jpeg": 95, "webp": 90, "avif": 80}
MAX_JPEG_EXIF_BYTES = 65533  # one JPEG segment
pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


class ImageDecodeError(ValueError):
    """A file that cannot become an image; the message is meant for the person who sent it.

    code: "image_too_large", "unsupported_image" or "broken_image".
    """

    def __init__(self, message: str, code: str = "broken_image"):
        super().__init__(message)
        self.code = code


class ImageEncodeError(ValueError):
    """An image that the wanted format cannot hold, say one wider than WebP allows."""


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image as a person sees it: turned upright, in RGB.

    pixels: (H, W, 3) float32 in [0, 1], in the colours of icc_profile (sRGB when None).
    alpha: (H, W) float32 in [0, 1], not multiplied into pixels; None when the file has none.
    bit_depth: 8 or 16, what the file really carried.
    exif: the descriptive tags with orientation 1, starting with "Exif\\0\\0"; None when there are none.
    is_gray: the file had one colour channel; the three in pixels are equal.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bit_depth: int = 8
    icc_profile: bytes | None = None
    exif: bytes | None = None
    is_gray: bool = False


def decode_image(data: bytes | Path, *, max_pixels: int | None = None) -> DecodedImage:
    """Reads a PNG, JPEG, WebP, AVIF, TIFF or HEIC (8 bits of it); of several frames or pages the first, or the primary.

    max_pixels: refuses larger images by their header, before any pixel is decoded. Pillow's own limit
    (Image.MAX_IMAGE_PIXELS) holds as well.
    Raises ImageDecodeError for whatever is wrong with the content, OSError when a path cannot be read.
    """
    content = data.read_bytes() if isinstance(data, Path) else data
    try:
        # Pillow warns of odd metadata and of large images; the first is harmless, the second is decided here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return decode_opened(image, content, max_pixels)
    except ImageDecodeError:
        raise
    except UnidentifiedImageError as error:
        message = f"this is not a readable image; known formats: {', '.join(FORMATS)}"
        raise ImageDecodeError(message, "unsupported_image") from error
    except Image.DecompressionBombError as error:
        raise ImageDecodeError(f"the image is too large: {error}", "image_too_large") from error
    except Exception as error:
        # On hostile files Pillow's plugins raise nearly anything: OSError, SyntaxError, KeyError and more
        raise ImageDecodeError(f"the image is damaged: {str(error) or type(error).__name__}") from error


def decode_opened(image: Image.Image, content: bytes, max_pixels: int | None) -> DecodedImage:
    """Decodes what Image.open found; content is the whole file."""
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        raise ImageDecodeError(
            f"the image is too large: {width} x {height} is {width * height / 1e6:.1f} Mpx, "
            f"the limit is {max_pixels / 1e6:.1f} Mpx",
            "image_too_large",
        )
    is_deep = has_16_bits(image, content)
    # Before load(), in which Pillow turns a TIFF upright and resets the tag; OpenCV gets it as it is stored.
    orientation = read_orientation(image)
    exif, profile = read_exif(image), image.info.get("icc_profile")
    image.load()  # fails on truncated files, before OpenCV gets them: it may fill in what is missing
    if image.mode not in GRAY_MODES + COLOUR_MODES:
        raise ImageDecodeError(f"images of mode {image.mode} are not supported", "unsupported_image")
    # A palette has no gray of its own; a 1-bit or gray file has, also when OpenCV returns it as colour.
    is_gray = image.mode in GRAY_MODES or (is_deep and image.format == "PNG" and content[25] == 4)
    samples = turn_upright(pillow_samples(image, profile), read_orientation(image))
    if is_deep and samples.dtype != np.uint16:  # Pillow reads 16-bit gray whole, of colour the upper bytes
        deep_samples = read_16_bits(content, orientation, samples)
        samples = samples if deep_samples is None else deep_samples
    if samples.ndim == 2:
        samples = samples[..., None]
    peak = 65535 if samples.dtype == np.uint16 else 255
    has_alpha = samples.shape[2] in (2, 4)
    colour = samples[..., : samples.shape[2] - has_alpha].astype(np.float32) / np.float32(peak)
    return DecodedImage(
        pixels=np.ascontiguousarray(np.broadcast_to(colour, (*colour.shape[:2], 3))),
        alpha=samples[..., -1].astype(np.float32) / np.float32(peak) if has_alpha else None,
        bit_depth=16 if peak == 65535 else 8,
        icc_profile=profile if profile_fits(profile, is_gray) else None,
        exif=exif,
        is_gray=is_gray,
    )


def has_16_bits(image: Image.Image, content: bytes) -> bool:
    """Whether the file carries 16 bits per channel; Pillow shows colour files of that kind as 8-bit RGB."""
    if image.format == "PNG":
        return content[24] == 16  # the bit depth in IHDR, which the standard puts first
    if image.format == "TIFF":
        tags = image.tag_v2
        if any(sample_format != 1 for sample_format in tags.get(SAMPLE_FORMAT, (1,))):
            message = "TIFF with signed or floating-point samples is not supported"
            raise ImageDecodeError(message, "unsupported_image")
        # Only plain RGB: other colour spaces and premultiplied alpha are left to Pillow, as 8 bits.
        is_plain = tags.get(PHOTOMETRIC) == 2 and 1 not in tags.get(EXTRA_SAMPLES, ())
        return set(tags.get(BITS_PER_SAMPLE, (1,))) == {16} and is_plain
    return False


def read_16_bits(content: bytes, orientation: int, upper_bytes: np.ndarray) -> np.ndarray | None:
    """(H, W, 3) or (H, W, 4) uint16 in RGB order, upright; None when OpenCV cannot or reads otherwise.

    upper_bytes: what Pillow made of the same file, upright (H, W, C) uint8.
    """
    samples = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3 or samples.shape[2] not in (3, 4):
        return None
    samples = samples[..., [2, 1, 0, 3][: samples.shape[2]]]  # OpenCV's order is BGR(A)
    # OpenCV turns a TIFF upright and leaves a PNG as it is stored. Rather than trust every version to do so,
    # take whichever Pillow agrees with; that also proves that both read the same picture.
    for candidate in (samples, turn_upright(samples, orientation)):
        if np.array_equal(candidate[..., 0] >> 8, upper_bytes[..., 0]):
            return candidate
    return None


def turn_upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation (1 to 8) to stored samples (H, W, ...)."""
    if orientation >= 5:  # first row is a side of the picture
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def pillow_samples(image: Image.Image, profile: bytes | None) -> np.ndarray:
    """A loaded image as Pillow sees it: (H, W[, C]) uint8 in L, LA, RGB or RGBA, or uint16 in gray."""
    if image.mode.startswith("I;16"):
        return deep_gray_samples(image)
    if image.mode == "CMYK":
        return np.asarray(cmyk_to_rgb(image, profile))
    has_alpha = image.has_transparency_data or image.mode in ("La", "RGBa")
    if image.mode in GRAY_MODES:
        return np.asarray(image.convert("LA" if has_alpha else "L"))
    return np.asarray(image.convert("RGBA" if has_alpha else "RGB"))


def deep_gray_samples(image: Image.Image) -> np.ndarray:
    """16-bit gray as uint16 (H, W), or (H, W, 2) where the file names one value as transparent."""
    gray = np.asarray(image).astype(np.uint16)
    if image.format == "TIFF":
        if image.tag_v2.get(BITS_PER_SAMPLE) == (12,):
            gray = np.rint(gray * (65535 / 4095)).astype(np.uint16)
        if image.tag_v2.get(PHOTOMETRIC) == 0:  # white is zero; Pillow turns only 8-bit files round
            gray = 65535 - gray
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return gray
    return np.stack([gray, np.where(gray == transparent, 0, 65535).astype(np.uint16)], axis=-1)


def cmyk_to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """CMYK to sRGB, by the inks of the profile where there is a usable one."""
    if profile is not None:
        try:
            inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, inks, srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


def encode_image(
    image: np.ndarray,
    output_format: str = "png",
    quality: int | None = None,
    like: DecodedImage | None = None,
    keep_metadata: bool = True,
    *,
    alpha: np.ndarray | None = None,
    bit_depth: int | None = None,
) -> bytes:
    """Writes an image file.

    image: (H, W, 3) float in [0, 1]; what lies outside is clipped.
    output_format: "png", "jpeg", "webp", "avif" or "tiff".
    quality: 1 to 100 for jpeg (default 95), webp (90; 100 is lossless) and avif (80); the rest are lossless.
    like: the decoded source. Its bit depth (where the format has it), alpha (enlarged to the image; JPEG has
      none and gets white instead), grayness and colour profile carry over.
    keep_metadata: also its EXIF, and an XMP packet that says "algorithmically enhanced". Without it neither
      is written; the colour profile stays, since the numbers mean other colours without it.
    alpha: (H, W) in [0, 1], instead of like's.  bit_depth: 8 or 16, instead of like's.
    Raises ImageEncodeError when the format cannot hold the image, ValueError on arguments of no meaning.
    """
    if output_format not in OUTPUT_FORMATS:
        raise ValueError(f"unknown output format {output_format!r}; known: {', '.join(OUTPUT_FORMATS)}")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"an image is (H, W, 3), not {image.shape}")
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality is 1 to 100, not {quality}")
    depth = bit_depth or (like.bit_depth if like and output_format in DEEP_FORMATS else 8)
    if depth not in ((8, 16) if output_format in DEEP_FORMATS else (8,)):
        raise ValueError(f"{output_format} cannot be written with {depth} bits")
    if alpha is None and like is not None and like.alpha is not None:
        alpha = fit_alpha(like.alpha, image.shape[:2])
    samples = quantise(image, alpha, depth, output_format, is_gray=like is not None and like.is_gray)
    profile = like.icc_profile if like and profile_fits(like.icc_profile, samples.shape[2] <= 2) else None
    exif = exif_for_size(like.exif, *image.shape[1::-1]) if keep_metadata and like and like.exif else None
    xmp = XMP_PACKET if keep_metadata else None
    try:
        if output_format == "png":
            return add_png_chunks(encode_png(samples), profile, exif and exif.tobytes(), xmp)
        if output_format == "tiff":
            return encode_tiff(samples, profile, exif, xmp)
        return encode_lossy(samples, output_format, quality, profile, exif, xmp)
    except Exception as error:
        # Pillow raises as freely here as when reading; the arguments were checked, so the format is at fault.
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise ImageEncodeError(f"cannot write {size} pixels as {output_format}: {error}") from error


def fit_alpha(alpha: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Enlarges alpha (h, w) to (height, width), bicubic, clipped to [0, 1]."""
    if alpha.shape == shape:
        return alpha
    resized = Image.fromarray(alpha.astype(np.float32)).resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.asarray(resized).clip(0, 1)


def quantise(
    image: np.ndarray, alpha: np.ndarray | None, bit_depth: int, output_format: str, is_gray: bool
) -> np.ndarray:
    """Samples (H, W, C) uint8 or uint16 in the channels the format will hold."""
    if alpha is not None and alpha.shape != image.shape[:2]:
        raise ValueError(f"alpha is {alpha.shape}, the image {image.shape[:2]}")
    if alpha is not None and output_format == "jpeg":
        image, alpha = image * alpha[..., None] + (1 - alpha[..., None]), None
    if is_gray:
        image = image.mean(axis=2, keepdims=True)
        # WebP and AVIF know only colour; 16-bit gray with alpha is legal and hardly any program reads it.
        if output_format in ("webp", "avif") or (alpha is not None and bit_depth == 16):
            image = np.broadcast_to(image, (*image.shape[:2], 3))
    channels = image.shape[2]
    peak, dtype = (65535, np.uint16) if bit_depth == 16 else (255, np.uint8)
    samples = np.empty((*image.shape[:2], channels + (alpha is not None)), dtype)
    for channel in range(samples.shape[2]):  # one plane at a time: no second float copy of a large image
        plane = image[..., channel] if channel < channels else alpha
        samples[..., channel] = np.rint(np.nan_to_num(plane).clip(0, 1) * peak)
    return samples


def encode_png(samples: np.ndarray) -> bytes:
    """A bare PNG of (H, W, C) samples."""
    num_channels = samples.shape[2]
    if num_channels == 2:  # gray with alpha, which OpenCV does not know
        output = io.BytesIO()
        Image.fromarray(samples).save(output, "PNG", compress_level=PNG_LEVEL)
        return output.getvalue()
    if num_channels >= 3:  # OpenCV's order is BGR(A)
        samples = samples[..., [2, 1, 0, 3][:num_channels]]
    level = PNG_LEVEL if samples.dtype == np.uint8 else DEEP_PNG_LEVEL
    is_written, data = cv2.imencode(".png", np.ascontiguousarray(samples), [cv2.IMWRITE_PNG_COMPRESSION, level])
    if not is_written:
        raise OSError("OpenCV refused it")
    return data.tobytes()


def encode_lossy(
    samples: np.ndarray,
    output_format: str,
    quality: int | None,
    icc_profile: bytes | None,
    exif: Image.Exif | None,
    xmp: bytes | None,
) -> bytes:
    """A JPEG, WebP or AVIF of (H, W, C) uint8 samples."""
    quality = quality or DEFAULT_QUALITY[output_format]
    options: dict[str, object] = {"quality": quality}
    if output_format in ("jpeg", "avif") and quality >= 90:
        options["subsampling"] = "4:4:4"  # halved colour would undo part of the work
    if output_format == "webp":
        options["lossless"] = quality == 100
    block = exif.tobytes() if exif is not None else None
    if block and output_format == "jpeg" and len(block) > MAX_JPEG_EXIF_BYTES:
        block = None
    metadata = {"icc_profile": icc_profile, "exif": block, "xmp": xmp}
    options |= {name: value for name, value in metadata.items() if value}
    output = io.BytesIO()
    picture = Image.fromarray(samples.squeeze(2) if samples.shape[2] == 1 else samples)
    picture.save(output, output_format.upper(), **options)
    return output.getvalue()
