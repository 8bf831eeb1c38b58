"""The Qwen-VL preprocessing against Hugging Face's processor: same grids, same pixel values, bit for bit."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from encoder_workers import Limits, Media, load_processor
from encoder_workers.checkpoint import Checkpoint
from encoder_workers.families.normalize import Normalization, PatchNormalizer
from encoder_workers.families.qwen_pixels import (
    PixelSettings,
    image_patches,
    read_pixel_settings,
    target_size,
)
from encoder_workers.families.qwen_processor import QwenVLProcessor
from encoder_workers.families.qwen_video import VideoSettings
from encoder_workers.media import ItemMetadata
from tests.unit.encoder_workers.encoder_fixtures import image_file, noise_image, png_header_only
from transfer.errors import BadMedia, LimitExceeded

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CPU = torch.device("cpu")


def pixel_settings(patch_size: int, min_pixels: int, max_pixels: int) -> PixelSettings:
    return PixelSettings(
        patch_size=patch_size,
        temporal_patch_size=2,
        merge_size=2,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        normalization=Normalization(MEAN, STD),
    )


def image_processor(settings: PixelSettings) -> QwenVLProcessor:
    return QwenVLProcessor(settings, VideoSettings("qwen2_vl", settings))


def reference(settings: PixelSettings) -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(
        size={"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
        patch_size=settings.patch_size,
        temporal_patch_size=settings.temporal_patch_size,
        merge_size=settings.merge_size,
    )


# (height, width) -> tokens, worked out independently of this code.
QWEN2 = ((224, 224, 64), (480, 640, 391), (1080, 1920, 1222), (2160, 3840, 1222))
QWEN2_5 = ((224, 224, 64), (480, 640, 391), (1080, 1920, 2691), (2160, 3840, 10549))
QWEN3 = ((224, 224, 64), (480, 640, 300), (1080, 1920, 2040), (2160, 3840, 8160))


@pytest.mark.parametrize(
    ("settings", "golden"),
    [
        (pixel_settings(14, 56 * 56, 28 * 28 * 1280), QWEN2),
        (pixel_settings(14, 56 * 56, 12845056), QWEN2_5),
        (pixel_settings(16, 65536, 16777216), QWEN3),
    ],
    ids=["qwen2", "qwen2.5", "qwen3"],
)
def test_golden_token_counts(settings: PixelSettings, golden: tuple[tuple[int, int, int], ...]) -> None:
    processor = image_processor(settings)
    for height, width, num_tokens in golden:
        media = Media("image", png_header_only(height, width))
        assert processor.describe(media, Limits()).num_tokens == num_tokens


def sizes(count: int, longest: int) -> list[tuple[int, int]]:
    draw = random.Random(5)
    return [(draw.randint(1, longest), draw.randint(1, longest)) for _ in range(count)]


@pytest.mark.parametrize(
    ("patch_size", "min_pixels", "max_pixels"),
    [(14, 3136, 28 * 28 * 1280), (14, 3136, 12845056), (16, 65536, 16777216)],
    ids=["qwen2", "qwen2.5", "qwen3"],
)
def test_description_from_the_header_equals_the_reference_expansion(
    patch_size: int, min_pixels: int, max_pixels: int
) -> None:
    settings = pixel_settings(patch_size, min_pixels, max_pixels)
    processor, theirs = image_processor(settings), reference(settings)
    refused = 0
    for height, width in sizes(800, 4000) + sizes(200, 60):
        media = Media("image", png_header_only(height, width))
        try:
            expected = theirs.get_number_of_image_patches(height, width)
        except ValueError:
            refused += 1
            with pytest.raises(BadMedia, match="200 times"):
                processor.describe(media, Limits())
            continue
        metadata = processor.describe(media, Limits(tokens=10**6))
        assert (metadata.num_patches, metadata.num_tokens) == (expected, expected // 4)
        assert metadata.array("image_grid_thw").shape == (3,)
    assert refused < 100


def test_placeholders_in_the_prompt_equal_the_description(tiny_qwen2_5_vl) -> None:
    """The whole reference processor, text included: what vLLM expands to."""
    theirs = AutoProcessor.from_pretrained(tiny_qwen2_5_vl)
    ours = load_processor(tiny_qwen2_5_vl)
    image_token = theirs.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    for height, width in sizes(40, 700):
        data = image_file(Image.new("RGB", (width, height)), "PNG")
        image = Image.open(io.BytesIO(data))
        if max(height, width) / min(height, width) > 200:
            continue
        inputs = theirs(text="a<|vision_start|><|image_pad|><|vision_end|>b", images=[image], return_tensors="pt")
        metadata = ours.describe(Media("image", data), Limits())
        assert isinstance(metadata, ItemMetadata)
        assert metadata.num_tokens == int((inputs["input_ids"] == image_token).sum())
        assert list(metadata.array("image_grid_thw").values) == inputs["image_grid_thw"][0].tolist()


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize(
    "size", [(900, 1300), (300, 400), (56, 56), (30, 500), (500, 30), (57, 3), (112, 112), (641, 480), (28, 28)]
)
def test_pixel_values_are_bit_equal_to_the_reference(patch_size: int, size: tuple[int, int]) -> None:
    settings = pixel_settings(patch_size, 3136, 200704)
    image = noise_image(*size, seed=sum(size))
    expected = reference(settings)([image], return_tensors="pt")
    height, width = target_size(*size, factor=settings.factor, min_pixels=3136, max_pixels=200704)
    rows = image_patches(torch.from_numpy(np.array(image)), height, width, settings)
    assert rows.dtype == torch.uint8
    values = PatchNormalizer(settings.normalization, settings.patch_width, CPU, torch.float32)(rows)
    assert torch.equal(values, expected["pixel_values"])
    assert [1, height // patch_size, width // patch_size] == expected["image_grid_thw"][0].tolist()


def test_settings_are_those_the_reference_reads(tiny_qwen2_5_vl) -> None:
    theirs = AutoProcessor.from_pretrained(tiny_qwen2_5_vl).image_processor
    ours = read_pixel_settings(Checkpoint(tiny_qwen2_5_vl))
    assert (ours.min_pixels, ours.max_pixels) == (theirs.size["shortest_edge"], theirs.size["longest_edge"])
    assert ours.patch_width == 3 * 2 * 14 * 14


def test_options_change_the_bounds_and_bad_ones_are_named() -> None:
    processor = image_processor(pixel_settings(14, 3136, 12845056))
    data = png_header_only(1080, 1920)
    small = processor.describe(Media("image", data, (("max_pixels", 28 * 28 * 64),)), Limits())
    assert small.num_tokens <= 64
    for options, message in (
        ((("max_pixel", 1),), "unknown processor option 'max_pixel'"),
        ((("max_pixels", 0),), "positive integer"),
        ((("max_pixels", True),), "positive integer"),
        ((("min_pixels", 20_000_000),), "more than max_pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.describe(Media("image", data, options), Limits())


def test_too_many_tokens_are_refused_before_decoding() -> None:
    processor = image_processor(pixel_settings(14, 3136, 12845056))
    with pytest.raises(LimitExceeded, match="2691 tokens, more than the limit of 2690"):
        processor.describe(Media("image", png_header_only(1080, 1920)), Limits(tokens=2690))
    with pytest.raises(BadMedia, match="not audio"):
        processor.describe(Media("audio", b"RIFF"), Limits())
