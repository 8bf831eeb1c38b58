"""Whether memory stays flat under load: what each process of a service holds after every of several loads.

    python -m benchmarks.memory [--loads 8] [--requests 200]

Starts an E/P/D service of a small random checkpoint and asks about 40 pictures again and again, many at once. Prints
the memory that belongs to each process alone (USS), and by how much it grew. KV caches are made small, since their
pages are only taken when they are first used.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from benchmarks.overhead import request_body
from benchmarks.service import random_checkpoint, running_service

_NUM_PICTURES = 40
_SETTLE_S = 3.0
_SHOWN_BYTES = 2**20


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Whether memory stays flat under load.")
    parser.add_argument("--loads", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200, help="requests of one load, all at once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_service(_config(folder), folder / "service.log") as url:
            before = memory_below(os.getpid())
            print(f"before the first load: {sum(before.values()) >> 20} MiB")
            for load in range(arguments.loads):
                asyncio.run(_ask_all(url, arguments.requests))
                time.sleep(_SETTLE_S)
                after = memory_below(os.getpid())
                print(f"after load {load + 1}: {sum(after.values()) >> 20} MiB")
                for process, size in after.items():
                    grown = size - before.get(process, size)
                    if abs(grown) > _SHOWN_BYTES:
                        print(f"    {process:<64}{size / 2**20:>9.1f} MiB {grown / 2**20:>+7.1f}")
                before = after
    return 0


def _config(folder: Path) -> Path:
    checkpoint = random_checkpoint("qwen2_5_vl", folder)
    engine = {"kv_cache_bytes": "48 MiB", "engine_args": {"max_model_len": 4096, "enforce_eager": True}}
    settings: dict[str, Any] = {"model": str(checkpoint), "served_model_name": "demo", "dtype": "float32"}
    settings |= {"encoder": {}, "prefill": engine, "decode": engine}
    config = folder / "service.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return config


def memory_below(process_id: int) -> dict[str, int]:
    """Bytes that belong to each process below this one alone, by its id and command."""
    sizes = {}
    for process in psutil.Process(process_id).children(recursive=True):
        try:
            name = " ".join(process.cmdline())[:56]
            sizes[f"{process.pid} {name}"] = process.memory_full_info().uss
        except psutil.NoSuchProcess:
            continue
    return sizes


async def _ask_all(url: str, num_requests: int) -> None:
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        bodies = [request_body(number, 112 + 28 * (number % 8), 8) for number in range(_NUM_PICTURES)]
        asked = (bodies[number % _NUM_PICTURES] | {"stream": False} for number in range(num_requests))
        answers = await asyncio.gather(*(client.post(f"{url}/v1/chat/completions", json=body) for body in asked))
        for answer in answers:
            answer.raise_for_status()


if __name__ == "__main__":
    raise SystemExit(main())
