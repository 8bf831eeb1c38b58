"""Pixels to patches for the Qwen-VL families: target size, number of tokens, patch rows, normalisation.

The arithmetic is that of Hugging Face's Qwen2VLImageProcessor, which vLLM runs for all three families.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from encoder_workers.checkpoint import Checkpoint, CheckpointError
from encoder_workers.config_reader import ConfigReader
from encoder_workers.families.normalize import Normalization, read_normalization
from encoder_workers.resize import resize_bicubic
from transfer.errors import BadMedia

ProcessorKind = Literal["image", "video"]
MAX_ASPECT_RATIO = 200
DEFAULT_IMAGE_BOUNDS = (56 * 56, 28 * 28 * 1280)
CLIP_NORMALIZATION = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_PIL_BICUBIC = 3


@dataclass(frozen=True)
class PixelSettings:
    """How the checkpoint's image processor is configured."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    normalization: Normalization

    @property
    def factor(self) -> int:
        """Side in pixels of the square that becomes one token."""
        return self.patch_size * self.merge_size

    @property
    def patch_width(self) -> int:
        """Number of values in one patch row: channels x temporal x patch x patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2


def read_pixel_settings(
    checkpoint: Checkpoint, *, kind: ProcessorKind = "image", default_bounds: tuple[int, int] = DEFAULT_IMAGE_BOUNDS
) -> PixelSettings:
    """From processor_config.json when it holds a processor of this kind, else from that kind's own file.

    `default_bounds` are (min_pixels, max_pixels) where the file names none. Raises CheckpointError for settings this
    preprocessing does not implement, rather than ignore them.
    """
    reader = processor_section(checkpoint, kind)
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not reader.flag(step, True):
            raise CheckpointError(f"{reader.where}: {step} is false, which is not supported")
    if reader.flag("cap_pixels_per_frame", False):
        raise CheckpointError(f"{reader.where}: cap_pixels_per_frame is true, which is not supported")
    if reader.integer("resample", _PIL_BICUBIC) != _PIL_BICUBIC:
        raise CheckpointError(f"{reader.where}: only bicubic resampling ({_PIL_BICUBIC}) is supported")
    min_pixels, max_pixels = default_bounds
    if "size" in reader:
        size = reader.section("size")
        min_pixels, max_pixels = size.integer("shortest_edge"), size.integer("longest_edge")
    return PixelSettings(
        patch_size=reader.integer("patch_size", 14),
        temporal_patch_size=reader.integer("temporal_patch_size", 2),
        merge_size=reader.integer("merge_size", 2),
        min_pixels=reader.integer("min_pixels", min_pixels),
        max_pixels=reader.integer("max_pixels", max_pixels),
        normalization=read_normalization(reader, CLIP_NORMALIZATION),
    )


def processor_section(checkpoint: Checkpoint, kind: ProcessorKind) -> ConfigReader:
    """The settings of the checkpoint's processor of this kind. Raises CheckpointError when it has none."""
    processor = checkpoint.read_json("processor_config.json")
    if processor is not None and f"{kind}_processor" in processor:
        return ConfigReader(processor, "processor_config.json").section(f"{kind}_processor")
    # A checkpoint without a file for videos processes them as its file for images says.
    files = (
        ["preprocessor_config.json"]
        if kind == "image"
        else ["video_preprocessor_config.json", "preprocessor_config.json"]
    )
    for file in files:
        content = checkpoint.read_json(file)
        if content is not None:
            return ConfigReader(content, file)
    raise CheckpointError(f"{checkpoint.directory} has no {' or '.join(files)} and no {kind} processor")


def require_same_grid(pixels: PixelSettings, patch_size: int, temporal_patch_size: int, merge_size: int) -> None:
    """Raise CheckpointError when the tower would cut an image otherwise than the processor does."""
    tower = (patch_size, temporal_patch_size, merge_size)
    processor = (pixels.patch_size, pixels.temporal_patch_size, pixels.merge_size)
    if tower != processor:
        raise CheckpointError(
            f"patch_size, temporal_patch_size and merge_size differ: {processor} in the processor's configuration, "
            f"{tower} in the tower's"
        )


def target_size(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width to resize to: multiples of `factor`, their product within the pixel bounds, aspect kept.

    Formula of smart_resize in the Qwen-VL repositories; Python's rounding of halves to even is part of it.
    Raises BadMedia for a side ratio over 200.
    """
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise BadMedia(
            f"the image is {width}x{height}: one side is more than {MAX_ASPECT_RATIO} times the other, "
            "which this model does not take"
        )
    target_height, target_width = round(height / factor) * factor, round(width / factor) * factor
    if target_height * target_width > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        target_height = max(factor, math.floor(height / shrink / factor) * factor)
        target_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif target_height * target_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        target_height = math.ceil(height * grow / factor) * factor
        target_width = math.ceil(width * grow / factor) * factor
    return target_height, target_width


def patchify(frames_TCHW: torch.Tensor, settings: PixelSettings) -> torch.Tensor:
    """Patch rows [t * h * w, patch_width] of frames, their number a multiple of the temporal patch size.

    Rows come in merge order: the merge_size^2 patches that become one token are neighbours. Columns are channel,
    time, height, width, as the weight of the patch embedding wants them.
    """
    num_frames, channels, height, width = frames_TCHW.shape
    patch, merge, temporal = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    grid_h, grid_w = height // patch, width // patch
    split = frames_TCHW.reshape(
        num_frames // temporal, temporal, channels, grid_h // merge, merge, patch, grid_w // merge, merge, patch
    )
    return split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, channels * temporal * patch * patch)


def image_patches(pixels_HWC: torch.Tensor, height: int, width: int, settings: PixelSettings) -> torch.Tensor:
    """Patch rows in uint8 of one image resized to height x width; the image stands still for one temporal patch."""
    frame = resize_bicubic(pixels_HWC.permute(2, 0, 1)[None], height, width)
    return patchify(frame.expand(settings.temporal_patch_size, -1, -1, -1), settings)
