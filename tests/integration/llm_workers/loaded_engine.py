"""Loads one engine again and again and prints the memory that it holds after each load, in bytes, as JSON.

Usage: python -m tests.integration.llm_workers.loaded_engine CHECKPOINT NUM_LOADS NUM_REQUESTS
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

from vllm.sampling_params import RequestOutputKind, SamplingParams

from configs import parse_config
from llm_workers.messages import DecodeRequest, Prompt
from llm_workers.worker import LLMWorker
from tests.integration.llm_workers.heap import Heap

_SETTLE_S = 0.5


def main(checkpoint: str, num_loads: int, num_requests: int) -> None:
    # A small cache: the pages of one are only taken when its blocks are first used.
    arguments = {"max_model_len": 1024, "enforce_eager": True, "worker_extension_cls": f"{Heap.__module__}.Heap"}
    engine = {"kv_cache_bytes": "16 MiB", "engine_args": arguments}
    config = {"model": checkpoint, "served_model_name": "demo", "dtype": "float32", "decode": engine}
    worker = LLMWorker(parse_config(config), "decode", "127.0.0.1")
    try:
        sizes = asyncio.run(_memory_after_loads(worker, num_loads, num_requests))
        sys.stdout.write(json.dumps({"sizes": sizes}) + "\n")
    finally:
        worker.close()


async def _memory_after_loads(worker: LLMWorker, num_loads: int, num_requests: int) -> list[int]:
    sizes = []
    numbers = random.Random(1)
    for load in range(num_loads):
        # Prompts of every length, so that hardly two batches have the same number of rows.
        prompts = [[numbers.randrange(250) for _ in range(numbers.randrange(60, 300))] for _ in range(num_requests)]
        names = [f"{load}-{number}" for number in range(num_requests)]
        await asyncio.gather(*(_ask(worker, name, prompt) for name, prompt in zip(names, prompts, strict=True)))
        await asyncio.sleep(_SETTLE_S)
        (held,) = await worker.engine._running().collective_rpc(Heap.held_bytes.__name__)  # one worker, in the engine
        sizes.append(held)
    return sizes


async def _ask(worker: LLMWorker, name: str, prompt: list[int]) -> None:
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    request = DecodeRequest(name, Prompt(prompt), params, None, (), 300.0)
    async for _ in worker.decode(request):
        pass


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
