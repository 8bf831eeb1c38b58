"""Reads image files: size and orientation from the header alone, and pixels as RGB.

Colours follow vLLM's loader (vllm/multimodal/image.py), so that an engine that holds the tower itself sees the same
pixels: EXIF orientation applied, anything with transparency laid on white, every other mode converted by Pillow.
"""

from __future__ import annotations

import contextlib
import io
import struct
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ExifTags, Image

from encoder_workers.media import Limits
from transfer.errors import BadMedia, LimitExceeded

# Raster formats decoded inside Pillow; others (EPS, for one) would start external programs on a stranger's file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_BACKGROUND = (255, 255, 255)
_PNG_SIGNATURE_BYTES = 8
_PNG_METADATA_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)


@dataclass(frozen=True)
class ImageSize:
    """Height and width in pixels, of the image held upright."""

    height: int
    width: int


def read_image_size(data: bytes, limits: Limits) -> ImageSize:
    """Size of the upright image, decoding no pixels. Raises BadMedia, or LimitExceeded for what is over `limits`."""
    return _upright_size(*_open(data, limits))


def decode_image(data: bytes, limits: Limits) -> torch.Tensor:
    """Pixels [height, width, 3] in uint8, of the size `read_image_size` tells. Raises as that does."""
    image, orientation = _open(data, limits)
    size = _upright_size(image, orientation)
    try:
        image.load()
        upright = image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image
        rgb = _to_rgb(upright)
    except MemoryError:
        raise
    except Exception as error:  # a decoder meeting hostile bytes may raise anything; the item alone must fail
        raise BadMedia(f"the image's data is damaged or incomplete: {error}") from error
    if (rgb.height, rgb.width) != (size.height, size.width):
        raise BadMedia(f"the image's header says {size.width}x{size.height}, its data {rgb.width}x{rgb.height}")
    return torch.from_numpy(np.array(rgb))


def _open(data: bytes, limits: Limits) -> tuple[Image.Image, int]:
    """The image with its header read, and its EXIF orientation."""
    if not data:
        raise BadMedia("the image is empty (0 bytes)")
    if len(data) > limits.item_bytes:
        raise LimitExceeded(f"the image has {len(data)} bytes, more than the limit of {limits.item_bytes}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise LimitExceeded(f"the image has too many pixels: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # as in decode_image
        raise BadMedia("the data is not an image in a known format: " + ", ".join(FORMATS)) from error
    num_pixels = image.width * image.height
    if num_pixels > limits.pixels:
        raise LimitExceeded(
            f"the image is {image.width}x{image.height}, {num_pixels} pixels, more than the limit of {limits.pixels}"
        )
    if num_pixels == 0:
        raise BadMedia(f"the image is {image.width}x{image.height}, without pixels")
    return image, _orientation(image, data)


def _upright_size(image: Image.Image, orientation: int) -> ImageSize:
    if orientation in _SWAPS_SIDES:
        return ImageSize(height=image.width, width=image.height)
    return ImageSize(height=image.height, width=image.width)


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation 1 to 8; 1 when there is none or it cannot be read, as in vLLM."""
    if image.format == "TIFF":
        return 1  # Pillow itself turns a TIFF when it loads it, and already tells the turned size
    with contextlib.suppress(Exception):
        if image.format == "PNG" and _png_has_late_metadata(data):
            image.load()  # Pillow sees what follows the pixels only after them
        # The base class's method: PNG's own decodes all pixels when the header holds no EXIF.
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    return 1


def _png_has_late_metadata(data: bytes) -> bool:
    """Whether a chunk that may hold an orientation comes after the pixel data."""
    position, pixels_seen = _PNG_SIGNATURE_BYTES, False
    while position + 8 <= len(data):
        num_bytes, kind = struct.unpack_from(">I4s", data, position)
        pixels_seen = pixels_seen or kind == b"IDAT"
        if pixels_seen and kind in _PNG_METADATA_CHUNKS:
            return True
        position += num_bytes + 12
    return False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, _BACKGROUND)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image.convert("RGB")
