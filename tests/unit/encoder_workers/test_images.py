"""Image files: sizes from headers, limits before decoding, and typed errors for what cannot be read."""

import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from encoder_workers.images import FORMATS, ImageSize, decode_image, read_image_size
from encoder_workers.media import Limits
from tests.unit.encoder_workers.encoder_fixtures import image_file, noise_image, png_chunk, png_header_only
from transfer.errors import BadMedia, LimitExceeded

LIMITS = Limits()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


def upright_files() -> dict[str, bytes]:
    """Files of one 20 x 30 image (or its stored form turned) whose upright size needs more than the first header."""
    rgb = noise_image(20, 30)
    png = image_file(rgb, "PNG")
    late = png[:-12] + png_chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\x00\x00")) + png[-12:]
    turned = {f"jpeg_exif_{i}": image_file(rgb, "JPEG", exif=exif(i)) for i in range(1, 9)}
    return turned | {
        "png_exif": image_file(rgb, "PNG", exif=exif(8)),
        "png_exif_after_pixels": late,
        "webp_exif": image_file(rgb, "WEBP", exif=exif(5)),
        "tiff_orientation": image_file(rgb, "TIFF", tiffinfo={274: 6}),
        "jpeg_damaged_exif": image_file(rgb, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"),
        "jpeg_orientation_out_of_range": image_file(rgb, "JPEG", exif=exif(77)),
    }


@pytest.mark.parametrize("name", upright_files())
def test_header_tells_the_size_that_decoding_gives(name: str) -> None:
    data = upright_files()[name]
    size = read_image_size(data, LIMITS)
    pixels = decode_image(data, LIMITS)
    assert pixels.shape == (size.height, size.width, 3)
    assert pixels.dtype == torch.uint8
    turned = any(mark in name for mark in ("exif_5", "exif_6", "exif_7", "exif_8", "png_exif", "webp", "tiff"))
    assert size == (ImageSize(30, 20) if turned else ImageSize(20, 30))


def test_size_needs_no_pixels() -> None:
    data = png_header_only(2160, 3840)
    assert read_image_size(data, LIMITS) == ImageSize(2160, 3840)
    with pytest.raises(BadMedia, match="damaged or incomplete"):
        decode_image(data, LIMITS)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "MPO"])
@pytest.mark.parametrize("kept", [0.25, 0.6, 0.9])
def test_truncated_files_are_bad_media(file_format: str, kept: float) -> None:
    image = noise_image(64, 64).convert("P") if file_format == "GIF" else noise_image(64, 64)
    data = image_file(image, file_format)
    with pytest.raises(BadMedia):
        decode_image(data[: int(len(data) * kept)], LIMITS)


@pytest.mark.parametrize("file_format", [*FORMATS, "MPO"])
def test_every_format_named_is_read(file_format: str) -> None:
    image = noise_image(48, 64)
    data = image_file(image, file_format)
    assert read_image_size(data, LIMITS) == ImageSize(48, 64)
    pixels = decode_image(data, LIMITS)
    assert pixels.shape == (48, 64, 3)
    if file_format in ("PNG", "BMP", "TIFF", "PPM"):
        assert torch.equal(pixels, torch.from_numpy(np.array(image)))


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_other_files_are_bad_media(data: bytes) -> None:
    for read in (read_image_size, decode_image):
        with pytest.raises(BadMedia, match=r"not an image|empty"):
            read(data, LIMITS)


def test_postscript_is_not_handed_to_an_interpreter() -> None:
    data = image_file(noise_image(8, 8), "EPS")
    Image.open(io.BytesIO(data))  # Pillow alone would take it
    with pytest.raises(BadMedia, match="known format"):
        read_image_size(data, LIMITS)


@pytest.mark.parametrize("side", [20_000, 60_000])  # below and above Pillow's own guard
def test_bomb_is_refused_from_its_header(side: int) -> None:
    bomb = png_header_only(side, side)
    for read in (read_image_size, decode_image):
        with pytest.raises(LimitExceeded, match="pixels"):
            read(bomb, LIMITS)


def test_limits_are_inclusive_and_named() -> None:
    data = image_file(noise_image(10, 10), "PNG")
    assert decode_image(data, Limits(pixels=100, item_bytes=len(data))).shape == (10, 10, 3)
    with pytest.raises(LimitExceeded, match="10x10, 100 pixels, more than the limit of 99"):
        read_image_size(data, Limits(pixels=99))
    with pytest.raises(LimitExceeded, match=f"{len(data)} bytes, more than the limit of {len(data) - 1}"):
        read_image_size(data, Limits(item_bytes=len(data) - 1))


def test_broken_bytes_never_escape_the_typed_errors() -> None:
    """Damage every 7th byte of small files of each format: either it decodes, or BadMedia; nothing else."""
    outcomes = set()
    for file_format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        data = bytearray(image_file(noise_image(12, 9), file_format))
        for position in range(0, len(data), 7):
            damaged = bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
            try:
                decode_image(damaged, Limits(pixels=10_000))
                outcomes.add("decoded")
            except BadMedia:
                outcomes.add("refused")
    assert outcomes == {"decoded", "refused"}
