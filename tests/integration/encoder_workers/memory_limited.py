"""Runs a batcher in a process that may take little more memory than it has; prints what became of each item as JSON.

python -m tests.integration.encoder_workers.memory_limited CHECKPOINT MEBIBYTES SIDExNUMBER ...
"""

from __future__ import annotations

import io
import json
import queue
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from encoder_workers import Embedding, Media, load_encoder
from encoder_workers.batcher import Batcher, EncodeJob, Outcome
from transfer import HostEmbedding
from transfer.tensors import buffer_to_tensor

WAIT_S = 120.0


def picture(side: int, seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PPM")
    return out.getvalue()


def limit_memory(num_bytes: int | None) -> None:
    """To so much more than there is now; None for no limit."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = resource.RLIM_INFINITY if num_bytes is None else pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def outcomes_of(batcher: Batcher, files: Sequence[bytes], cost: int) -> list[Outcome]:
    """What became of each, given to the batcher together."""
    found: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
    for index, data in enumerate(files):

        def done(outcome: Outcome, index: int = index) -> None:
            found.put((index, outcome))

        batcher.submit(EncodeJob(Media("image", data), cost, float(cost), lambda: True, done))
    ended = dict(found.get(timeout=WAIT_S) for _ in files)
    return [ended[index] for index in range(len(files))]


def main() -> None:
    checkpoint, mebibytes, *groups = sys.argv[1:]
    torch.set_num_threads(1)
    encoder = load_encoder(checkpoint, dtype="float32")
    passes: list[int] = []
    batcher = Batcher(encoder, 10**9, 60.0, 1.0, 1, on_pass=lambda times: passes.append(times.num_items))
    sets = []
    for group in groups:
        side, _, number = group.partition("x")
        sets.append((int(side), [picture(int(side), seed) for seed in range(int(number))]))
    encoder.encode([Media("image", picture(56, 0))])  # What is loaded or set up once is not to be counted.
    limit_memory(int(mebibytes) << 20)
    ended: list[tuple[list[Outcome], list[int]]] = []
    for side, files in sets:
        ended.append((outcomes_of(batcher, files, (side // 14) ** 2), list(passes)))
        passes.clear()
    limit_memory(None)
    report: list[dict[str, Any]] = []
    for (_, files), (outcomes, sizes) in zip(sets, ended, strict=True):
        words = []
        for data, outcome in zip(files, outcomes, strict=True):
            (expected,) = encoder.encode([Media("image", data)])
            assert isinstance(expected, Embedding)
            if isinstance(outcome, HostEmbedding):
                rows = buffer_to_tensor(outcome.memory, outcome.shape, outcome.dtype)
                words.append("right" if torch.allclose(rows, expected.tensor, rtol=1e-4, atol=1e-5) else "wrong")
            else:
                words.append(outcome.code)
        report.append({"outcomes": words, "passes": sizes})
    batcher.close()
    encoder.close()
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
