"""What a Qwen-VL model's prompt needs beside an embedding that the client sent: its grid, and a video's times.

The fields are vLLM's own.
"""

from __future__ import annotations

import math

from encoder_workers.families.qwen_pixels import PixelSettings
from encoder_workers.families.qwen_video import VideoSettings
from encoder_workers.given_embeddings import GivenEmbedding, integers, require_arrays
from encoder_workers.media import ItemMetadata
from transfer.errors import BadMedia
from transfer.messages import Metadata, Modality

_SECONDS, _TIMES = "second_per_grid_ts", "timestamps"


def given_image(given: GivenEmbedding, pixels: PixelSettings) -> ItemMetadata:
    """Raises BadMedia when its grid is missing or impossible."""
    require_arrays(given, ("image_grid_thw",))
    metadata = _of_grid("image", given, pixels.merge_size)
    if metadata.array("image_grid_thw").values[0] != 1:
        raise BadMedia("image_grid_thw of an image must begin with 1")
    return metadata


def given_video(given: GivenEmbedding, settings: VideoSettings) -> ItemMetadata:
    """Raises BadMedia when its grid is missing or impossible, or the time of a step is not told."""
    grid = "video_grid_thw"
    required = (grid, _TIMES) if settings.style == "qwen3_vl" else (grid,)
    require_arrays(given, required, (_SECONDS,) if settings.style == "qwen2_5_vl" else ())
    metadata = _of_grid("video", given, settings.pixels.merge_size)
    prompt = list(metadata.prompt)
    if settings.style == "qwen2_5_vl":
        prompt.append(Metadata.of(_SECONDS, _seconds(given)))
    elif settings.style == "qwen3_vl":
        times = given.arrays[_TIMES].values
        steps = metadata.array(grid).values[0]
        if len(times) != steps or min(times) < 0:
            raise BadMedia(f"{_TIMES} must be {steps} times in seconds, one for each step of {grid}")
        prompt.append(Metadata.of(_TIMES, [float(time_s) for time_s in times]))
    return ItemMetadata("video", metadata.num_tokens, metadata.num_patches, tuple(prompt))


def _of_grid(modality: Modality, given: GivenEmbedding, merge_size: int) -> ItemMetadata:
    name = f"{modality}_grid_thw"
    grid = integers(given.arrays[name], 3)
    if grid[1] % merge_size or grid[2] % merge_size:
        raise BadMedia(f"{name} {list(grid)}: height and width must be multiples of {merge_size}")
    num_patches = math.prod(grid)
    return ItemMetadata(modality, num_patches // merge_size**2, num_patches, (Metadata.of(name, grid),))


def _seconds(given: GivenEmbedding) -> float:
    """Seconds of a temporal step; 1 where nobody tells, as in vLLM."""
    array = given.arrays.get(_SECONDS)
    if array is None:
        return 1.0
    if len(array.values) != 1 or array.values[0] <= 0:
        raise BadMedia(f"{_SECONDS} must be one positive number")
    return float(array.values[0])
