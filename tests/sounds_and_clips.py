"""Sounds and clips as files, drawn from a seed."""

from __future__ import annotations

import io
from collections.abc import Sequence

import av
import numpy as np
import soundfile


def sound(seconds: float, *, rate: int = 16000, channels: int = 1, kind: str = "WAV", seed: int = 0) -> bytes:
    """A chord with noise, another one in each channel."""
    draw = np.random.default_rng(seed)
    times = np.arange(int(seconds * rate)) / rate
    tracks = []
    for _ in range(channels):
        tones = sum(np.sin(2 * np.pi * pitch * times) for pitch in draw.uniform(100, 3000, 3))
        tracks.append(0.1 * tones + 0.02 * draw.standard_normal(len(times)))
    out = io.BytesIO()
    soundfile.write(out, np.stack(tracks, axis=1).astype(np.float32), rate, format=kind)
    return out.getvalue()


def wav(samples: np.ndarray, rate: int) -> bytes:
    """Samples [n] as a WAV file that keeps every bit of them."""
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="WAV", subtype="FLOAT")
    return out.getvalue()


def clip(
    num_frames: int,
    height: int,
    width: int,
    *,
    fps: int = 24,
    codec: str = "libx264",
    container: str = "mp4",
    seed: int = 0,
    pixel_format: str = "yuv420p",
) -> bytes:
    """Coloured blocks that change from frame to frame."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        for frame in frames(num_frames, height, width, seed):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    return out.getvalue()


def frames(num_frames: int, height: int, width: int, seed: int) -> Sequence[np.ndarray]:
    """Frames [height, width, 3] in uint8."""
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3)).repeat(16, 0).repeat(16, 1)[:height, :width]
    steps = draw.integers(3, 40, 3)
    return [((blocks + index * steps) % 256).astype(np.uint8) for index in range(num_frames)]
