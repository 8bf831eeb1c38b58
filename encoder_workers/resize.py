"""Resizes pixels exactly as Hugging Face's tensor image processors do, without torchvision."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def resize_bicubic(pixels_NCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Antialiased bicubic resize of uint8 pixels [N, C, H, W], in integer arithmetic and hence the same on every CPU.

    This is what torchvision.transforms.v2.functional.resize runs for a uint8 tensor on a CPU, bit for bit. Pillow's
    own filter differs from it by one grey level in some places.
    """
    if pixels_NCHW.shape[-2:] == (height, width):
        return pixels_NCHW
    return F.interpolate(pixels_NCHW, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
