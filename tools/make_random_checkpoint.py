"""Write a small random multimodal checkpoint in its published layout, for tests, examples and demonstrations.

Weights are drawn with gain 2: greedy output then depends on every pixel. With the usual 0.02 initialisation a model
repeats one token whatever it is shown, and comparing two systems' outputs proves nothing.

Usage: python tools/make_random_checkpoint.py OUT_DIR [--family qwen2_5_vl] [--seed 1]
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from random_checkpoints import (
    audioflamingo3,
    idefics3,
    internvl,
    internvl_chat,
    qwen2_5_vl,
    qwen2_audio,
    qwen2_vl,
    qwen3_vl,
)

logger = logging.getLogger("make_random_checkpoint")

FAMILIES: dict[str, Callable[[Path, int], None]] = {
    "qwen2_vl": qwen2_vl.write,
    "qwen2_5_vl": qwen2_5_vl.write,
    "qwen3_vl": qwen3_vl.write,
    "qwen3_vl_moe": qwen3_vl.write_moe,
    "internvl": internvl.write,
    "internvl_chat": internvl_chat.write,
    "qwen2_audio": qwen2_audio.write,
}
"""Those with an encoder of Triptych's own."""

VLLM_FAMILIES: dict[str, Callable[[Path, int], None]] = {
    "audioflamingo3": audioflamingo3.write,
    "idefics3": idefics3.write,
}
"""Two of those that vLLM's own tower encodes."""

SIZED: dict[str, Callable[[Path, int], None]] = {
    "qwen2_5_vl_half_second": qwen2_5_vl.write_half_second,
    "qwen2_5_vl_wide": qwen2_5_vl.write_wide,
}
"""Checkpoints of a size that a benchmark wants."""

_WRITERS = FAMILIES | VLLM_FAMILIES | SIZED


def make_checkpoint(out_dir: Path, *, family: str = "qwen2_5_vl", seed: int = 1) -> None:
    """Write the checkpoint; `out_dir` appears only when complete. Raises ValueError for a bad family or a used path."""
    write = _WRITERS.get(family)
    if write is None:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(sorted(_WRITERS))}")
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ValueError(f"{out_dir} exists and is not empty")
    started = time.monotonic()
    logger.info("building a random %s checkpoint", family)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        write(partial, seed)
        partial.chmod(0o755)
        for path in partial.iterdir():
            path.chmod(0o644)
        partial.rename(out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("wrote %s in %.1f s", out_dir, time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--family", default="qwen2_5_vl", choices=sorted(_WRITERS))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        make_checkpoint(arguments.out_dir, family=arguments.family, seed=arguments.seed)
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
