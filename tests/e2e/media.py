"""Pictures for the end-to-end tests: every size, format and mode that a user may send, reproducible by seed."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """An encoded picture."""

    data: bytes
    suffix: str

    @property
    def data_url(self) -> str:
        """As a data: URL."""
        return f"data:image/{self.suffix};base64,{base64.b64encode(self.data).decode()}"


def draw(seed: int, width: int, height: int, kind: str = "png") -> Picture:
    """A picture of noise with large blocks, so that both details and areas count.

    Args:
        kind: png, jpeg, webp, rgba (PNG with transparency), palette (PNG), gray (PNG), rotated (JPEG with EXIF).
    """
    noise = np.random.RandomState(seed)
    blocks = noise.randint(0, 255, (height // 32 + 1, width // 32 + 1, 3)).repeat(32, 0).repeat(32, 1)
    pixels = (blocks[:height, :width] * 0.7 + noise.randint(0, 255, (height, width, 3)) * 0.3).astype(np.uint8)
    image = Image.fromarray(pixels)
    out = io.BytesIO()
    if kind == "rgba":
        image.putalpha(Image.fromarray(noise.randint(0, 255, (height, width), dtype=np.uint8)))
    elif kind == "palette":
        image = image.quantize(64)
    elif kind == "gray":
        image = image.convert("L")
    if kind in ("jpeg", "rotated"):
        exif = Image.Exif()
        if kind == "rotated":
            exif[_EXIF_ORIENTATION] = 6
        image.save(out, "JPEG", quality=90, exif=exif.tobytes())
        return Picture(out.getvalue(), "jpeg")
    if kind == "webp":
        image.save(out, "WEBP", quality=90)
        return Picture(out.getvalue(), "webp")
    image.save(out, "PNG")
    return Picture(out.getvalue(), "png")
