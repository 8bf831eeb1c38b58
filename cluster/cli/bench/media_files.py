"""Pictures, clips and sounds of a seed as parts of a chat message, so that every run of a scenario shows the same."""

from __future__ import annotations

import base64
import io
import random
import wave
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from cluster.cli.png import png_file

_BLOCK = 8
_FRAMES_PER_S = 8
_SAMPLES_PER_S = 16000
_NUM_TONES = 3
_LOUDNESS = 0.1

Part = Mapping[str, Any]


def picture_part(seed: int, side: int) -> Part:
    """A PNG file of coloured blocks, `side` pixels square."""
    chance = random.Random(seed)
    num_blocks = -(-side // _BLOCK)
    rows = []
    for _ in range(num_blocks):
        colours = chance.randbytes(3 * num_blocks)
        row = b"".join(colours[3 * block : 3 * block + 3] * _BLOCK for block in range(num_blocks))[: 3 * side]
        rows += [row] * _BLOCK
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_text(png_file(side, rows[:side]))}"}}


def clip_part(seed: int, side: int, seconds: float) -> Part:
    """An MP4 file of coloured blocks that brighten and begin again, `side` pixels square, eight frames a second."""
    chance = np.random.default_rng(seed)
    num_blocks = -(-side // _BLOCK)
    colours = chance.integers(0, 256, (num_blocks, num_blocks, 3))
    blocks = colours.repeat(_BLOCK, 0).repeat(_BLOCK, 1)[:side, :side]
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=_FRAMES_PER_S)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for index in range(max(1, round(seconds * _FRAMES_PER_S))):
            pixels = ((blocks + 16 * index) % 256).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{_text(out.getvalue())}"}}


def sound_part(seed: int, seconds: float) -> Part:
    """A WAV file of a chord, mono, 16 bits at 16 kHz."""
    chance = np.random.default_rng(seed)
    times: NDArray[np.float64] = np.arange(round(seconds * _SAMPLES_PER_S)) / _SAMPLES_PER_S
    tones = [np.sin(2 * np.pi * pitch * times) for pitch in chance.uniform(100, 3000, _NUM_TONES)]
    samples = (np.sum(tones, axis=0) * _LOUDNESS * np.iinfo(np.int16).max).astype("<i2")
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(samples.itemsize)
        file.setframerate(_SAMPLES_PER_S)
        file.writeframes(samples.tobytes())
    return {"type": "input_audio", "input_audio": {"data": _text(out.getvalue()), "format": "wav"}}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
