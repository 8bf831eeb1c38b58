"""Rescales and normalises uint8 patch rows on the tower's device: a quarter of the bytes to move there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from encoder_workers.checkpoint import CheckpointError
from encoder_workers.config_reader import ConfigReader


@dataclass(frozen=True)
class Normalization:
    """value -> (value * rescale_factor - mean) / std, by colour."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale_factor: float = 1 / 255


def read_normalization(reader: ConfigReader, default: Normalization) -> Normalization:
    """image_mean, image_std and rescale_factor of a processor's configuration. Raises CheckpointError."""
    normalization = Normalization(
        mean=reader.numbers("image_mean", default.mean),
        std=reader.numbers("image_std", default.std),
        rescale_factor=reader.number("rescale_factor", default.rescale_factor),
    )
    if len(normalization.mean) != 3 or len(normalization.std) != 3 or 0.0 in normalization.std:
        raise CheckpointError(f"{reader.where}: image_mean and image_std must have 3 values, image_std none of them 0")
    return normalization


class PatchNormalizer:
    """Applies a Normalization to rows whose columns are red values, then green, then blue ones."""

    def __init__(
        self, normalization: Normalization, patch_width: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        # Rescaling is folded into mean and deviation, and done in float32, as Hugging Face's tensor processors do:
        # results are equal to theirs bit for bit before the cast.
        repeat = patch_width // 3
        scale = 1.0 / normalization.rescale_factor
        self._mean = (torch.tensor(normalization.mean) * scale).repeat_interleave(repeat).to(device)
        self._std = (torch.tensor(normalization.std) * scale).repeat_interleave(repeat).to(device)
        self._device = device
        self._dtype = dtype

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        """uint8 rows [S, patch_width] on the host to normalised rows of the tower's dtype on its device."""
        values = patches.to(self._device).float()
        return values.sub_(self._mean).div_(self._std).to(self._dtype)
