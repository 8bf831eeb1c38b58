"""One vLLM engine and what a worker asks of it; the only file that holds an AsyncLLM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerFactory

from configs import TriptychConfig
from configs.environment import set_environment
from llm_workers.embedding_path import EmbeddingPath
from llm_workers.engine_config import EngineRole, engine_args, engine_environment
from llm_workers.engine_input import engine_input
from llm_workers.first_token import FirstTokens
from llm_workers.messages import GenerateOptions, KVParams, Prompt
from llm_workers.resumed_sequence import ResumedSequence
from transfer import BadMedia, DeadlineExceeded, QueueFull, WorkerLost

logger = logging.getLogger(__name__)

# vLLM's own 5 s end in SIGKILL while its workers still leave, and then their shared memory stays behind.
_SHUTDOWN_TIMEOUT_S = 20.0
_DIED = "the engine of this replica died"


class LanguageModelEngine:
    """A running engine: start in the constructor, `generate`, `check_health`, `close` (idempotent)."""

    def __init__(
        self,
        config: TriptychConfig,
        role: EngineRole,
        host: str,
        path: EmbeddingPath | None,
        stat_loggers: Sequence[StatLoggerFactory] = (),
    ) -> None:
        """Start the engine's processes and load the language model.

        Args:
            host: address of this node for the KV side channel.
            path: the embedding path, when this engine computes prompts with media.
            stat_loggers: whom vLLM tells its statistics, besides its own log.

        Raises:
            ValueError: an engine argument that vLLM does not take.
        """
        set_environment(engine_environment(config, role, host))
        self._engine: AsyncLLM | None = AsyncLLM.from_engine_args(
            engine_args(config, role, path), stat_loggers=list(stat_loggers) or None
        )

    def first_tokens(self) -> FirstTokens | None:
        """What there is to know for giving first tokens; None where this model's KV cache does not allow it."""
        engine = self._running()
        block_size = engine.vllm_config.cache_config.block_size
        # A state instead of keys and values is that of the token before the last, which is computed again.
        if not block_size or engine.model_config.is_hybrid or engine.model_config.is_attention_free:
            return None
        tokenizer = None if engine.model_config.skip_tokenizer_init else engine.get_tokenizer()
        eos_token_id = engine.renderer.get_eos_token_id()
        return FirstTokens(tokenizer, block_size, eos_token_id, engine.model_config.try_get_generation_config())

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        options: GenerateOptions,
        *,
        timeout_s: float,
        kv_params: KVParams | None,
        ec_params: dict[str, Any] | None,
        num_given_tokens: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        """vLLM's outputs for one prompt; closing the generator aborts the request.

        Args:
            num_given_tokens: how many tokens at the prompt's end are the beginning of the answer (see DecodeRequest).

        Raises:
            BadMedia: the engine does not take this prompt or these parameters.
            DeadlineExceeded: `timeout_s` passed; the request is aborted.
            QueueFull: as many prompt tokens wait as the stage allows.
            WorkerLost: the engine's process died.
        """
        engine = self._running()
        resumed = None
        if num_given_tokens:
            resumed = ResumedSequence(engine.get_tokenizer(), prompt.token_ids, num_given_tokens, params)
            params = resumed.params()
        extra = dict(params.extra_args or {})
        if kv_params is not None:
            extra["kv_transfer_params"] = kv_params
        if ec_params is not None:
            extra["ec_transfer_params"] = ec_params
        own_params = params.clone()
        own_params.extra_args = extra or None
        # A retry may reach the same engine while its first try is still being aborted.
        engine_id = f"{request_id}-{uuid.uuid4().hex[:8]}"
        outputs = engine.generate(
            engine_input(prompt),
            own_params,
            engine_id,
            priority=options.priority,
            reasoning_ended=options.reasoning_ended,
            reasoning_parser_kwargs=options.reasoning_parser_kwargs,
        )
        deadline = _Deadline(engine, engine_id, timeout_s)
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    if deadline.passed and output.finished:
                        raise DeadlineExceeded("the request's time ended before its last token")
                    if resumed is not None:
                        resumed.complete(output)
                    yield output
                    if resumed is not None and output.finished:
                        return  # A stop string may have ended it before the engine does.
        except EngineDeadError as error:
            raise WorkerLost(_DIED) from error
        except GracefulHTTPError as error:
            # Only admission ends so, before the engine has taken anything: what kv_params stand for is still there.
            raise QueueFull("the engine's queue is full") from error
        except VLLMClientError as error:
            # The one typed error that is the client's to correct, whatever it was in the request.
            raise BadMedia(str(error)) from error
        finally:
            deadline.close()

    async def release_kv(self, request_id: str, kv_params: KVParams) -> None:
        """Tell the prefill engine that nobody will pull this KV cache."""
        await self._running().notify_kv_transfer_request_rejected(request_id, kv_params)

    async def check_health(self) -> None:
        """Raises WorkerLost when an engine process is dead."""
        try:
            await self._running().check_health()
        except EngineDeadError as error:
            raise WorkerLost(_DIED) from error

    def close(self) -> None:
        """End the engine's processes."""
        if self._engine is not None:
            self._engine.shutdown(timeout=_SHUTDOWN_TIMEOUT_S)
            self._engine = None

    def _running(self) -> AsyncLLM:
        assert self._engine is not None, "the engine is closed"
        return self._engine


class _Deadline:
    """Aborts a request in the engine when its time is over; the engine's last output then ends the stream.

    Not `asyncio.timeout`: that would cancel whoever awaits, and a generator's consumer may be elsewhere.
    """

    def __init__(self, engine: AsyncLLM, engine_id: str, timeout_s: float) -> None:
        self.passed = False
        self._engine = engine
        self._engine_id = engine_id
        self._abort: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._pass)

    def _pass(self) -> None:
        self.passed = True
        self._abort = asyncio.ensure_future(self._engine.abort(self._engine_id))

    def close(self) -> None:
        self._timer.cancel()
