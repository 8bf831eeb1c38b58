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

WAIT_S = 120.0


def picture(side: int, seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PPM")
    return out.getvalue()


def limit_memory(num_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + num_bytes, resource.RLIM_INFINITY))


def outcomes_of(batcher: Batcher, files: Sequence[bytes], cost: int) -> list[Outcome]:
    """What became of each, given to the batcher together."""
    found: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
    for index, data in enumerate(files):

        def done(outcome: Outcome, index: int = index) -> None:
            found.put((index, outcome))

        batcher.submit(EncodeJob(Media("image", data), cost, lambda: True, done))
    ended = dict(found.get(timeout=WAIT_S) for _ in files)
    return [ended[index] for index in range(len(files))]


def main() -> None:
    checkpoint, mebibytes, *groups = sys.argv[1:]
    torch.set_num_threads(1)
    encoder = load_encoder(checkpoint, dtype="float32")
    passes: list[int] = []
    batcher = Batcher(encoder, 10**9, 1.0, 1, on_pass=lambda times: passes.append(times.num_items))
    sets = []
    for group in groups:
        side, _, number = group.partition("x")
        files = [picture(int(side), seed) for seed in range(int(number))]
        sets.append((int(side), files, [encoder.encode([Media("image", data)])[0] for data in files]))
    limit_memory(int(mebibytes) << 20)
    report: list[dict[str, Any]] = []
    for side, files, expected in sets:
        passes.clear()
        words = []
        for outcome, embedding in zip(outcomes_of(batcher, files, (side // 14) ** 2), expected, strict=True):
            assert isinstance(embedding, Embedding)
            if isinstance(outcome, torch.Tensor):
                right = torch.allclose(outcome, embedding.tensor, rtol=1e-4, atol=1e-5)
                words.append("right" if right else "wrong")
            else:
                words.append(outcome.code)
        report.append({"outcomes": words, "passes": list(passes)})
    batcher.close()
    encoder.close()
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
