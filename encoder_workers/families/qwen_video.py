"""Videos of the Qwen-VL families: target size of the frames, grid, and what the prompt is told about time.

Formulas are those of Hugging Face's Qwen2VLVideoProcessor and Qwen3VLVideoProcessor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from encoder_workers.checkpoint import Checkpoint
from encoder_workers.families.frame_sampling import DEFAULT_SAMPLING, Clip, Sampling, sample_evenly, sample_in_steps
from encoder_workers.families.qwen_pixels import (
    MAX_ASPECT_RATIO,
    PixelSettings,
    patchify,
    processor_section,
    read_pixel_settings,
    target_size,
)
from encoder_workers.frame_sequences import FrameSequence
from encoder_workers.images import decode_image
from encoder_workers.media import ItemMetadata, Limits
from encoder_workers.resize import resize_bicubic
from encoder_workers.video_files import VideoFile, decode_frames_at
from transfer.errors import BadMedia
from transfer.messages import Metadata

# Pixel bounds: of each frame, or of the whole clip. Time: not told, seconds per grid step, or seconds of each step.
VideoStyle = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
SEQUENCE_FPS = 1.0
"""Rate at which the frames of a sequence were taken, where nobody says otherwise; as in vLLM."""
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
    sampling: Sampling = DEFAULT_SAMPLING


def read_video_settings(checkpoint: Checkpoint, style: VideoStyle) -> VideoSettings:
    """From the checkpoint's video processor, or its image processor where it has no other. Raises CheckpointError."""
    pixels = read_pixel_settings(checkpoint, kind="video", default_bounds=_DEFAULT_BOUNDS[style])
    reader, default = processor_section(checkpoint, "video"), DEFAULT_SAMPLING
    sampling = Sampling(
        fps=reader.number("fps", default.fps),
        min_frames=reader.integer("min_frames", default.min_frames),
        max_frames=reader.integer("max_frames", default.max_frames),
    )
    return VideoSettings(style, pixels, sampling)


def sample(total: int, fps: float, settings: VideoSettings) -> Clip:
    """The frames shown of a file of this many frames at this rate."""
    if settings.style == "qwen3_vl":
        return sample_evenly(total, fps, settings.sampling)
    return sample_in_steps(total, fps, settings.sampling, settings.pixels.temporal_patch_size)


def video_metadata(clip: Clip, height: int, width: int, settings: VideoSettings) -> ItemMetadata:
    """The token formula: grid, number of tokens and times of the frames shown, each of this size."""
    pixels, num_frames = settings.pixels, len(clip.indices)
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
        prompt.append(Metadata.of("second_per_grid_ts", pixels.temporal_patch_size / clip.sampled_fps))
    elif settings.style == "qwen3_vl":
        prompt.append(Metadata.of("timestamps", clip.step_times(pixels.temporal_patch_size)))
    num_pairs = steps * (grid[1] * grid[2]) ** 2
    return ItemMetadata("video", num_patches // pixels.merge_size**2, num_patches, tuple(prompt), num_pairs)


def decode_sequence(
    sequence: FrameSequence, grid: tuple[int, int, int], limits: Limits, patch_size: int
) -> torch.Tensor:
    """Frames [F, 3, H, W] in uint8 at their target size, resized one by one: at full size they could take gigabytes."""
    resized = []
    for index, frame in enumerate(sequence.frames):
        try:
            pixels = decode_image(frame, limits)
        except BadMedia as error:
            raise BadMedia(f"frame {index} of the video: {error.message}") from error
        resized.append(_resized(pixels, grid, patch_size))
    return torch.cat(resized)


def decode_file(
    data: bytes, file: VideoFile, clip: Clip, grid: tuple[int, int, int], limits: Limits, patch_size: int
) -> torch.Tensor:
    """As `decode_sequence`, of the frames of a file that are shown."""
    frames = decode_frames_at(data, file, clip.indices, limits)
    return torch.cat([_resized(pixels, grid, patch_size) for pixels in frames])


def _resized(pixels_HWC: torch.Tensor, grid: tuple[int, int, int], patch_size: int) -> torch.Tensor:
    return resize_bicubic(pixels_HWC.permute(2, 0, 1)[None], grid[1] * patch_size, grid[2] * patch_size)


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
