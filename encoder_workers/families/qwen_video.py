"""Videos of the Qwen-VL families: target size of the frames, grid, and what the prompt is told about time.

Formulas are those of Hugging Face's Qwen2VLVideoProcessor and Qwen3VLVideoProcessor for frames already sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from encoder_workers.checkpoint import Checkpoint
from encoder_workers.families.qwen_pixels import (
    MAX_ASPECT_RATIO,
    PixelSettings,
    patchify,
    read_pixel_settings,
    target_size,
)
from encoder_workers.frame_sequences import FrameSequence
from encoder_workers.images import decode_image
from encoder_workers.media import ItemMetadata, Limits
from encoder_workers.resize import resize_bicubic
from transfer.errors import BadMedia
from transfer.messages import Metadata

# Pixel bounds: of each frame, or of the whole clip. Time: not told, seconds per grid step, or seconds of each step.
VideoStyle = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
DEFAULT_FPS = 1.0
_DEFAULT_BOUNDS: dict[VideoStyle, tuple[int, int]] = {
    "qwen2_vl": (128 * 28 * 28, 768 * 28 * 28),
    "qwen2_5_vl": (128 * 28 * 28, 768 * 28 * 28),
    "qwen3_vl": (128 * 32 * 32, 768 * 32 * 32),
}


@dataclass(frozen=True)
class VideoSettings:
    """How the checkpoint's video processor is configured."""

    style: VideoStyle
    pixels: PixelSettings


def read_video_settings(checkpoint: Checkpoint, style: VideoStyle) -> VideoSettings:
    """From the checkpoint's video processor, or its image processor where it has no other. Raises CheckpointError."""
    return VideoSettings(style, read_pixel_settings(checkpoint, kind="video", default_bounds=_DEFAULT_BOUNDS[style]))


def video_metadata(num_frames: int, height: int, width: int, fps: float, settings: VideoSettings) -> ItemMetadata:
    """The token formula: grid, number of tokens and times of a clip whose frames were taken `fps` a second."""
    pixels = settings.pixels
    if settings.style == "qwen3_vl":
        target = _clip_target_size(num_frames, height, width, pixels)
    else:
        target = target_size(
            height, width, factor=pixels.factor, min_pixels=pixels.min_pixels, max_pixels=pixels.max_pixels
        )
    steps = -(-num_frames // pixels.temporal_patch_size)
    grid = (steps, target[0] // pixels.patch_size, target[1] // pixels.patch_size)
    num_patches = math.prod(grid)
    prompt = [Metadata.of("video_grid_thw", grid)]
    if settings.style == "qwen2_5_vl":
        prompt.append(Metadata.of("second_per_grid_ts", pixels.temporal_patch_size / fps))
    elif settings.style == "qwen3_vl":
        prompt.append(Metadata.of("timestamps", _step_times(num_frames, fps, pixels.temporal_patch_size)))
    return ItemMetadata("video", num_patches // pixels.merge_size**2, num_patches, tuple(prompt))


def decode_frames(sequence: FrameSequence, grid: tuple[int, int, int], limits: Limits, patch_size: int) -> torch.Tensor:
    """Frames [F, 3, H, W] in uint8 at their target size, resized one by one: at full size they could take gigabytes."""
    height, width = grid[1] * patch_size, grid[2] * patch_size
    resized = []
    for index, frame in enumerate(sequence.frames):
        try:
            pixels = decode_image(frame, limits)
        except BadMedia as error:
            raise BadMedia(f"frame {index} of the video: {error.message}") from error
        resized.append(resize_bicubic(pixels.permute(2, 0, 1)[None], height, width))
    return torch.cat(resized)


def video_patches(frames_FCHW: torch.Tensor, settings: VideoSettings) -> torch.Tensor:
    """Patch rows in uint8; the last frame is repeated to fill the last temporal patch."""
    missing = -len(frames_FCHW) % settings.pixels.temporal_patch_size
    filled = torch.cat((frames_FCHW, frames_FCHW[-1:].expand(missing, -1, -1, -1))) if missing else frames_FCHW
    return patchify(filled, settings.pixels)


def _clip_target_size(num_frames: int, height: int, width: int, pixels: PixelSettings) -> tuple[int, int]:
    """As `target_size`, with the pixel bounds on frames x height x width of the whole clip."""
    factor, temporal = pixels.factor, pixels.temporal_patch_size
    if num_frames < temporal:
        raise BadMedia(f"the video has {num_frames} frame(s), this model takes no fewer than {temporal}")
    if height < factor or width < factor:
        enlarge = max(factor / height, factor / width)
        height, width = int(height * enlarge), int(width * enlarge)
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise BadMedia(f"one side of the video is more than {MAX_ASPECT_RATIO} times the other")
    target_height, target_width = round(height / factor) * factor, round(width / factor) * factor
    volume = round(num_frames / temporal) * temporal * target_height * target_width
    if volume > pixels.max_pixels:
        shrink = math.sqrt(num_frames * height * width / pixels.max_pixels)
        target_height = max(factor, math.floor(height / shrink / factor) * factor)
        target_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif volume < pixels.min_pixels:
        grow = math.sqrt(pixels.min_pixels / (num_frames * height * width))
        target_height = math.ceil(height * grow / factor) * factor
        target_width = math.ceil(width * grow / factor) * factor
    return target_height, target_width


def _step_times(num_frames: int, fps: float, temporal: int) -> list[float]:
    """Seconds of each temporal step: the middle of its first and last frame; the last frame is repeated to fill."""
    frames = [*range(num_frames), *[num_frames - 1] * (-num_frames % temporal)]
    return [(frames[i] / fps + frames[i + temporal - 1] / fps) / 2 for i in range(0, len(frames), temporal)]
