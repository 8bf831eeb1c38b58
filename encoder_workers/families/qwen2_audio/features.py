"""Log-mel features as Whisper's feature extractor makes them, and how many frames and tokens a length gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from librosa.filters import mel


@dataclass(frozen=True)
class MelSettings:
    """How the checkpoint's feature extractor is configured."""

    num_mel_bins: int
    n_fft: int
    hop_length: int
    rate: int
    clip_s: int

    @property
    def clip_samples(self) -> int:
        """Samples of a full clip; shorter ones are filled with silence."""
        return self.clip_s * self.rate


def clip_lengths(num_samples: int, settings: MelSettings) -> list[int]:
    """Samples of each clip that a sound is cut into: full ones, and what is left."""
    full, left = divmod(num_samples, settings.clip_samples)
    return [settings.clip_samples] * full + [left] * bool(left)


def num_mel_frames(num_samples: int, settings: MelSettings) -> int:
    """Frames that hold sound, of a clip of this many samples; the rest of a full clip's frames is silence."""
    return -(-min(num_samples, settings.clip_samples) // settings.hop_length)


def num_tower_rows(mel_frames: int) -> int:
    """Rows after the convolution of stride 2."""
    return (mel_frames - 1) // 2 + 1


def num_tokens(mel_frames: int) -> int:
    """Tokens after pooling pairs of rows; an odd last row is dropped."""
    return (num_tower_rows(mel_frames) - 2) // 2 + 1


class LogMel:
    """Waveform to log-mel features. Keeps the filter bank; use from several threads."""

    def __init__(self, settings: MelSettings) -> None:
        self.settings = settings
        bank = mel(sr=settings.rate, n_fft=settings.n_fft, n_mels=settings.num_mel_bins, fmax=8000.0, dtype=np.float64)
        self._filters = torch.from_numpy(bank).float()
        self._window = torch.hann_window(settings.n_fft)

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """Features [num_mel_bins, F] of a clip, filled to full length first: the silence takes part in the scaling.

        Of the full clip's frames those are kept that the convolutions of the valid rows reach.
        """
        settings = self.settings
        full = torch.zeros(settings.clip_samples)
        full[: len(samples)] = samples[: settings.clip_samples]
        spectrum = torch.stft(full, settings.n_fft, settings.hop_length, window=self._window, return_complex=True)
        power = spectrum[:, :-1].abs().square().contiguous()
        log_power = (self._filters @ power).clamp(min=1e-10).log10()
        features = (torch.maximum(log_power, log_power.max() - 8.0) + 4.0) / 4.0
        reach = 2 * num_tower_rows(num_mel_frames(len(samples), settings)) + 1
        return features[:, : min(reach, features.shape[1])].contiguous()
