"""Encodes pictures of ever other sizes in two types and prints its memory at two moments, in bytes, as JSON.

Usage: python -m tests.integration.encoder_workers.many_encodes CHECKPOINT NUM_WARM_UPS NUM_ENCODES
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import random
import sys

import numpy as np
import psutil
import torch
from PIL import Image

from encoder_workers import Embedding, Media, load_encoder

_SHORTEST, _LONGEST = 28, 224


def main(checkpoint: str, num_warm_ups: int, num_encodes: int) -> None:
    torch.set_num_threads(1)
    encoders = [load_encoder(checkpoint, dtype=dtype) for dtype in ("float32", "bfloat16")]
    draw = random.Random(1)
    pixels = np.random.default_rng(0).integers(0, 256, (_LONGEST, _LONGEST, 3), dtype=np.uint8)
    sizes = []
    for num_done in range(num_encodes + 1):
        if num_done in (num_warm_ups, num_encodes):
            sizes.append(_own_bytes())
        file = io.BytesIO()
        height, width = draw.randint(_SHORTEST, _LONGEST), draw.randint(_SHORTEST, _LONGEST)
        Image.fromarray(pixels[:height, :width]).save(file, "BMP")
        for encoder in encoders:
            (result,) = encoder.encode([Media("image", file.getvalue())])
            assert isinstance(result, Embedding), result
    sys.stdout.write(json.dumps({"sizes": sizes}) + "\n")


def _own_bytes() -> int:
    """What belongs to this process alone, without what the allocator could give back at once."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_full_info().uss)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
