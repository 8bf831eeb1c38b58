"""Answers of whole vLLM engines, one family after another in this one process; a program that test_families.py starts.

Usage: python -m tests.e2e.families.reference_answers ASKS.json ANSWERS.json
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}

from transformers import Qwen3VLProcessor
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory


def serve_videos_to_qwen3_vl() -> None:
    """Let vLLM 0.30 process Qwen3-VL's videos, which it gives to the processor apart from the text that names them.

    The locked version of transformers refuses such a text; nothing else of the processor is touched.
    """
    Qwen3VLProcessor.validate_inputs = lambda *_, **__: None


def main(asks: Path, answers: Path) -> None:
    serve_videos_to_qwen3_vl()
    collected: dict[str, Any] = {}
    for family, entry in json.loads(asks.read_text()).items():
        llm = LLM(
            model=entry["model"],
            dtype="float32",
            max_model_len=entry["max_model_len"],
            enforce_eager=True,
            kv_cache_memory_bytes=96 * 2**20,
            mm_processor_cache_gb=0,
            limit_mm_per_prompt=entry["limits"],
            media_io_kwargs=entry["media_io_kwargs"],
            trust_remote_code=True,
        )
        collected[family] = [None if ask["refused"] else _answer(llm, ask) for ask in entry["asks"]]
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()
        answers.write_text(json.dumps(collected))


def _answer(llm: LLM, ask: dict[str, Any]) -> dict[str, list[int]]:
    params = SamplingParams(max_tokens=ask["max_tokens"], temperature=0, ignore_eos=True)
    (output,) = llm.chat(ask["reference"] or ask["messages"], params, use_tqdm=False)
    return {"prompt": list(output.prompt_token_ids), "answer": list(output.outputs[0].token_ids)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
