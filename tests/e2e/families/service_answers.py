"""Answers of Triptych's own stages over HTTP, one family after another; a program that test_families.py starts.

As in a service are: the OpenAI application on a socket, the pipeline, the encoder worker, the embedding server and the
connector in an engine that holds the language model alone, with the arguments that a decode worker gives it. Other than
there, the engine runs in this process, and calls reach the workers without Ray: both carry every family's messages
alike, and would take most of a minute for each family to start. tests/e2e/test_exact.py runs one family with them.

Usage: python -m tests.e2e.families.service_answers ASKS.json ANSWERS.json
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    # Set by the application too, but vLLM reads its environment once in a process, here for the engine first.
    "VLLM_MEDIA_CONNECTOR": "triptych",
}

import httpx
import uvicorn
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT
from vllm.outputs import RequestOutput
from vllm.v1.engine.llm_engine import LLMEngine

from cluster.ingress.app import build_openai_app
from cluster.ingress.observation import RequestObserver
from cluster.metrics.instruments import Instruments
from cluster.metrics.scrape import MetricsExport
from cluster.pipeline import Pipeline
from cluster.tracing import Tracing
from configs import TriptychConfig, embedding_fingerprint
from configs.ports import free_port
from encoder_workers.worker import EncoderWorker
from llm_workers.embedding_params import request_params
from llm_workers.embedding_path import EmbeddingPath
from llm_workers.engine_config import engine_args
from llm_workers.engine_input import engine_input
from llm_workers.messages import DecodeRequest, KVParams
from transfer import ClientSettings, EmbeddingClient, FailureCollector

_HOST = "127.0.0.1"
_TIMEOUT_S = 120.0
_RELEASE_S = 20.0


class InProcessDecode:
    """A decode stage whose engine computes prompts, in this process; one request at a time."""

    def __init__(self, config: TriptychConfig) -> None:
        self._failures = FailureCollector()
        path = EmbeddingPath(
            store_bytes=config.decode.embedding_store_bytes,
            fingerprint=embedding_fingerprint(config),
            failure_endpoint=self._failures.endpoint,
            channels=list(config.transfer.channels),
            num_streams=config.transfer.zmq_streams,
            curve_key_file=None,
        )
        self._engine = LLMEngine.from_engine_args(engine_args(config, "decode", path), enable_multiprocessing=False)
        # vLLM shares rotary tables within a process, and where it leaves a language model out, as in an encoder, it
        # empties those of that. In a service the two are never in one process.
        _ROPE_DICT.clear()

    async def decode(self, request: DecodeRequest) -> AsyncGenerator[RequestOutput, None]:
        for output in await asyncio.to_thread(self._run, request):
            yield output

    async def release_kv(self, request_id: str, kv_params: KVParams, timeout_s: float) -> None:
        raise AssertionError("there is no prefill stage")

    def close(self) -> None:
        """End the engine, and let the next one start in this process."""
        self._engine.engine_core.shutdown()
        del self._engine
        _ROPE_DICT.clear()
        gc.collect()
        cleanup_dist_env_and_memory()
        self._failures.close()

    def _run(self, request: DecodeRequest) -> list[RequestOutput]:
        params = request.params.clone()
        ec_params = request_params(request.request_id, request.embeddings, request.timeout_s)
        params.extra_args = {"ec_transfer_params": ec_params} if request.embeddings else None
        self._engine.add_request(request.request_id, engine_input(request.prompt), params)
        outputs: list[RequestOutput] = []
        deadline = time.monotonic() + request.timeout_s
        while self._engine.has_unfinished_requests():
            assert time.monotonic() < deadline, "the engine did not finish in time"
            outputs += self._engine.step()
        return outputs


@contextlib.asynccontextmanager
async def served(
    config: TriptychConfig, encoder: EncoderWorker, decode: InProcessDecode
) -> AsyncIterator[httpx.AsyncClient]:
    """The application on a port, until the block ends."""
    leases = EmbeddingClient(embedding_fingerprint(config), ClientSettings())

    async def status() -> dict[str, list[Any]]:
        return {"encoder": [encoder.stats()], "decode": [1]}

    pipeline = Pipeline(encoder, None, decode, attempts=1, busy_wait_s=config.limits.busy_wait_s)
    tracing = Tracing(config.observability, "ingress", "only")
    observer = RequestObserver(Instruments("ingress", "only"), tracing)
    app = build_openai_app(config, pipeline, leases, status, lambda: MetricsExport([], 0.0), observer)
    port = free_port(_HOST)
    server = uvicorn.Server(uvicorn.Config(app, host=_HOST, port=port, log_level="warning", lifespan="on"))
    serving = asyncio.ensure_future(server.serve())
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while not server.started:
                assert not serving.done(), "the application did not start"
                await asyncio.sleep(0.05)
        async with httpx.AsyncClient(base_url=f"http://{_HOST}:{port}", timeout=_TIMEOUT_S) as client:
            yield client
    finally:
        server.should_exit = True
        await serving
        leases.close()
        tracing.close()


async def answers_of(client: httpx.AsyncClient, ask: dict[str, Any]) -> dict[str, Any]:
    """Prompt and answer as token ids, or the status and message of a refusal."""
    body = {"model": "tiny", "messages": ask["messages"], "max_tokens": ask["max_tokens"], "temperature": 0}
    body |= {"return_token_ids": True, "ignore_eos": True, **ask["options"]}
    response = await client.post("/v1/chat/completions", json=body)
    if response.status_code != httpx.codes.OK:
        return {"status": response.status_code, "message": response.json()["error"]["message"]}
    answer = response.json()
    return {"prompt": answer["prompt_token_ids"], "answer": answer["choices"][0]["token_ids"]}


async def ask_all(config: TriptychConfig, entry: dict[str, Any]) -> dict[str, Any]:
    """Every answer of one family, and the leases that are left after them."""
    with (
        contextlib.closing(InProcessDecode(config)) as decode,
        contextlib.closing(EncoderWorker(config, _HOST)) as encoder,
    ):
        async with served(config, encoder, decode) as client:
            answers = [await answers_of(client, ask) for ask in entry["asks"]]
            # The engine's releases are under way when its answer is.
            deadline = time.monotonic() + _RELEASE_S
            while encoder.stats().num_leases:
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.05)
        return {"answers": answers, "num_leases": encoder.stats().num_leases}


def settings(entry: dict[str, Any]) -> TriptychConfig:
    """An E/PD service of one replica each."""
    return TriptychConfig.model_validate(
        {
            "model": entry["model"],
            "served_model_name": "tiny",
            "device": "cpu",
            "dtype": "float32",
            "trust_remote_code": entry["trust_remote_code"],
            "encoder": {"enable_mm_embeds": True, "engine": entry["engine"]},
            "decode": {
                "kv_cache_bytes": "96 MiB",
                "engine_args": {"max_model_len": entry["max_model_len"], "enforce_eager": True},
            },
            "limits": {"items_per_prompt": entry["limits"], "deadline_s": 100, "allowed_media_hosts": [_HOST]},
        }
    )


def main(asks: Path, answers: Path) -> None:
    collected = {}
    for family, entry in json.loads(asks.read_text()).items():
        collected[family] = asyncio.run(ask_all(settings(entry), entry))
        answers.write_text(json.dumps(collected))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
