"""Pixels against vLLM's own image loader: an engine that holds the tower itself must see the same ones."""

import numpy as np
import pytest
from PIL import Image
from vllm.multimodal.media.image import ImageMediaIO

from encoder_workers.images import decode_image
from encoder_workers.media import Limits
from tests.unit.encoder_workers.encoder_fixtures import image_file, noise_image
from tests.unit.encoder_workers.test_images import upright_files


def palette_with_transparency() -> Image.Image:
    image = noise_image(12, 14).quantize(8)
    image.info["transparency"] = 3
    return image


def sixteen_bit() -> Image.Image:
    return Image.fromarray(np.random.default_rng(2).integers(0, 65536, (9, 11), dtype=np.uint16))


FILES = upright_files() | {
    "rgb": image_file(noise_image(13, 17), "PNG"),
    "rgba": image_file(noise_image(13, 17, "RGBA"), "PNG"),
    "grey": image_file(noise_image(13, 17, "L"), "PNG"),
    "grey_alpha": image_file(noise_image(13, 17, "LA"), "PNG"),
    "palette": image_file(noise_image(13, 17).quantize(16), "PNG"),
    "palette_transparency": image_file(palette_with_transparency(), "PNG"),
    "rgb_transparent_colour": image_file(noise_image(13, 17), "PNG", transparency=(1, 2, 3)),
    "grey_transparent_colour": image_file(noise_image(13, 17, "L"), "PNG", transparency=7),
    "one_bit": image_file(noise_image(13, 17, "L").convert("1"), "PNG"),
    "sixteen_bit": image_file(sixteen_bit(), "PNG"),
    "sixteen_bit_tiff": image_file(sixteen_bit(), "TIFF"),
    "cmyk_jpeg": image_file(noise_image(13, 17).convert("CMYK"), "JPEG"),
    "grey_jpeg": image_file(noise_image(13, 17, "L"), "JPEG"),
    "jpeg": image_file(noise_image(33, 47), "JPEG", quality=60),
    "progressive_jpeg": image_file(noise_image(33, 47), "JPEG", progressive=True),
    "webp": image_file(noise_image(33, 47), "WEBP"),
    "webp_alpha": image_file(noise_image(33, 47, "RGBA"), "WEBP", lossless=True),
    "gif": image_file(noise_image(13, 17), "GIF"),
    "gif_transparency": image_file(palette_with_transparency(), "GIF", transparency=3),
    "animated_gif": image_file(
        noise_image(13, 17), "GIF", save_all=True, append_images=[noise_image(13, 17, seed=1)], duration=40
    ),
    "bmp": image_file(noise_image(13, 17), "BMP"),
    "rgba_tiff": image_file(noise_image(13, 17, "RGBA"), "TIFF"),
    "rgba_turned": image_file(
        noise_image(13, 17, "RGBA"),
        "PNG",
        exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01"
        b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_same_pixels_as_vllm(name: str) -> None:
    theirs = ImageMediaIO().load_bytes(FILES[name]).media
    assert theirs.mode == "RGB"
    assert np.array_equal(decode_image(FILES[name], Limits()).numpy(), np.asarray(theirs))
