"""Which frames of a video file the Qwen-VL families are shown, and when those were.

The formulas are those of Hugging Face's video processors and of vLLM's loaders for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Sampling:
    """Frames shown for each second of a file, and the fewest and most of one file."""

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768


DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True)
class Clip:
    """The frames that are shown.

    Attributes:
        indices: ascending, in the file or sequence they come from.
        total: frames there.
        fps: frames a second there.
    """

    indices: tuple[int, ...]
    total: int
    fps: float

    @property
    def sampled_fps(self) -> float:
        """Frames shown for each second."""
        return len(self.indices) / self.total * self.fps

    def step_times(self, temporal: int) -> list[float]:
        """Seconds of each temporal step: the middle of its first and last frame; the last frame is repeated to fill."""
        frames = [*self.indices, *[self.indices[-1]] * (-len(self.indices) % temporal)]
        times = [index / self.fps for index in frames]
        return [(times[i] + times[i + temporal - 1]) / 2 for i in range(0, len(times), temporal)]


def whole_sequence(num_frames: int, fps: float) -> Clip:
    """Every frame of a sequence whose frames were taken `fps` a second."""
    return Clip(tuple(range(num_frames)), num_frames, fps)


def sample_in_steps(total: int, fps: float, sampling: Sampling, temporal: int) -> Clip:
    """Qwen2-VL and Qwen2.5-VL: a whole number of temporal steps, from the first frame on, evenly.

    A file of fewer frames than one step is shown whole.
    """
    most = min(sampling.max_frames, total) // temporal * temporal
    number = math.floor(min(max(total / fps * sampling.fps, sampling.min_frames), most) / temporal) * temporal
    if number == 0:
        return Clip(tuple(range(total)), total, fps)
    # Hugging Face computes the indices in float32, which decides between neighbours.
    indices = torch.arange(0, total, total / number).int().clamp(max=total - 1)
    return Clip(tuple(dict.fromkeys(indices.tolist())), total, fps)


def sample_evenly(total: int, fps: float, sampling: Sampling) -> Clip:
    """Qwen3-VL: from the first frame to the last, evenly."""
    number = min(max(int(total / fps * sampling.fps), sampling.min_frames), sampling.max_frames, total)
    indices = np.linspace(0, total - 1, number).round().astype(int)
    return Clip(tuple(indices.tolist()), total, fps)
