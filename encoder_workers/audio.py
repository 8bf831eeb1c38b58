"""Reads audio files: length from the header alone, and samples as mono at the rate a model wants.

Channels are averaged and rates converted as in vLLM, so that an engine that holds the tower itself hears the same
samples.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import soundfile
import torch

from encoder_workers.audio_resample import resample
from encoder_workers.media import Limits
from transfer.errors import BadMedia, LimitExceeded

_MAX_CHANNELS = 16
_MAX_RATE = 384_000
_MARGIN_S = 1
"""Read beyond a cut, so that the rate conversion sees what follows it."""


@dataclass(frozen=True)
class AudioLength:
    """Samples per channel at the file's own rate in Hz."""

    num_samples: int
    rate: int

    def resampled(self, rate: int) -> int:
        """Number of samples after conversion to `rate`."""
        return math.ceil(self.num_samples * rate / self.rate)


def read_audio_length(data: bytes, limits: Limits) -> AudioLength:
    """Length, decoding no samples. Raises BadMedia, or LimitExceeded for what is over `limits`."""
    with _open(data, limits) as file:
        return AudioLength(file.frames, file.samplerate)


def decode_audio(data: bytes, limits: Limits, *, rate: int, max_s: int) -> torch.Tensor:
    """Mono samples [n] in float32 at `rate`, at most the first `max_s` seconds. Raises as `read_audio_length`."""
    with _open(data, limits) as file:
        length = AudioLength(file.frames, file.samplerate)
        try:
            samples = file.read(frames=min(file.frames, (max_s + _MARGIN_S) * length.rate), dtype="float32")
        except soundfile.LibsndfileError as error:
            raise BadMedia(f"the audio's data is damaged or incomplete: {error}") from error
    mono = samples.mean(axis=1) if samples.ndim > 1 else samples
    if len(mono) < min(length.num_samples, max_s * length.rate):
        raise BadMedia(f"the audio's header says {length.num_samples} samples, its data ends after {len(mono)}")
    return resample(torch.from_numpy(mono), length.rate, rate)[: max_s * rate]


def _open(data: bytes, limits: Limits) -> soundfile.SoundFile:
    if not data:
        raise BadMedia("the audio is empty (0 bytes)")
    if len(data) > limits.item_bytes:
        raise LimitExceeded(f"the audio has {len(data)} bytes, more than the limit of {limits.item_bytes}")
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        raise BadMedia("the data is not audio in a known format: WAV, FLAC, OGG, MP3, AIFF, AU, CAF") from error
    if file.channels > _MAX_CHANNELS or file.samplerate > _MAX_RATE:
        with file:
            raise LimitExceeded(
                f"the audio has {file.channels} channels at {file.samplerate} Hz; at most {_MAX_CHANNELS} channels at "
                f"{_MAX_RATE} Hz are taken"
            )
    return file
