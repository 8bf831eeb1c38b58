"""The prefill and decode workers: plain classes around one engine each; `cluster` makes Ray deployments of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.metrics.loggers import StatLoggerFactory

from configs import TriptychConfig, embedding_fingerprint
from llm_workers.embedding_params import request_params
from llm_workers.embedding_path import EmbeddingPath
from llm_workers.engine import LanguageModelEngine
from llm_workers.engine_config import EngineRole, computes_prompts, stage_settings
from llm_workers.engine_load import EngineLoad
from llm_workers.first_token import may_come_from_prefill
from llm_workers.kv_handoff import decode_sampling, prefill_kv_params, prefill_sampling
from llm_workers.messages import DecodeRequest, KVParams, PrefillRequest, PrefillResult
from llm_workers.observer import EngineObserver, NoObserver
from llm_workers.request_account import RequestAccount
from transfer import EmbeddingRef, FailureCollector, RetryableError, TriptychError

logger = logging.getLogger(__name__)

_FAILURE_REPORT_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class LLMStats:
    """What a worker does and has done. `process_id` tells replicas apart; `kv_cache_use` is from 0 to 1,
    of a KV cache that holds `kv_cache_tokens` (0 before the engine has told).

    `num_running` counts the requests that the worker has, `num_waiting` those of them that its engine does not compute
    yet, `num_deferred` those of the waiting ones that cannot begin before their embeddings or KV caches are there.
    `num_finished` counts all that ended, those among them that failed or were cancelled included. Of the prompts that
    are computed here, `num_unanswered_prompts` with `num_unanswered_tokens` have not led to a first token yet.
    `token_gaps_s` is the sum of the `num_token_gaps` times between two tokens of a sequence.
    """

    process_id: int
    num_running: int
    num_waiting: int
    num_deferred: int
    num_finished: int
    num_failed: int
    num_cancelled: int
    num_prompt_tokens: int
    num_generated_tokens: int
    embedding_bytes: int
    kv_cache_use: float
    kv_cache_tokens: int
    num_unanswered_prompts: int
    num_unanswered_tokens: int
    num_token_gaps: int
    token_gaps_s: float


class LLMWorker:
    """One engine of either stage.

    Lifecycle: the constructor starts the engine and returns when it can serve; then any number of calls, each of which
    ends when its result is complete, its deadline passes, or its caller cancels it (the engine then aborts the
    request); `close` ends the engine, is idempotent and safe after a failed start.
    """

    def __init__(
        self,
        config: TriptychConfig,
        role: EngineRole,
        host: str,
        observer: EngineObserver | None = None,
        stat_loggers: Sequence[StatLoggerFactory] = (),
    ) -> None:
        """Start the engine.

        Args:
            host: address at which other nodes reach this one.
            observer: is told of every request that ends.
            stat_loggers: whom vLLM tells its own statistics.
        """
        observer = observer or NoObserver()
        self._account = RequestAccount(observer, computes_prompts=computes_prompts(config, role))
        self._load = EngineLoad(observer.step_ended)
        self._failures: FailureCollector | None = None
        self._engine: LanguageModelEngine | None = None
        path = None
        if config.encoder is not None and computes_prompts(config, role):
            self._failures = FailureCollector()
            path = EmbeddingPath(
                store_bytes=stage_settings(config, role).embedding_store_bytes,
                fingerprint=embedding_fingerprint(config),
                failure_endpoint=self._failures.endpoint,
                channels=list(config.transfer.channels),
                num_streams=config.transfer.zmq_streams,
                curve_key_file=str(config.transfer.curve_key_file) if config.transfer.curve_key_file else None,
            )
        try:
            self._engine = LanguageModelEngine(config, role, host, path, [self._load.stat_logger, *stat_loggers])
            gives = role == "prefill" and may_come_from_prefill(config)
            self._first_tokens = self._engine.first_tokens() if gives else None
        except BaseException:
            self.close()
            raise

    @property
    def engine(self) -> LanguageModelEngine:
        """The running engine."""
        assert self._engine is not None, "the worker is closed"
        return self._engine

    async def prefill(self, request: PrefillRequest) -> PrefillResult:
        """Compute the prompt's KV cache and say how to pull it.

        Raises:
            RetryableError: an embedding could not be had; encoding the item again may help.
            TerminalError: it never can be had.
            DeadlineExceeded: `timeout_s` passed.
        """
        first_tokens = self._first_tokens
        sampling = first_tokens.sampling(request) if first_tokens is not None else None
        outputs = self._outputs(
            request, sampling or prefill_sampling(request.params, request.num_given_tokens), prefill_kv_params()
        )
        async with contextlib.aclosing(outputs):
            output = [output async for output in outputs][-1]
        kv_params = output.kv_transfer_params
        if kv_params is None:
            raise TriptychError("the prefill engine kept no KV cache: check kv_transfer.connector")
        # The output may be the first one of the answer, and vLLM's application tells clients what it finds there.
        output.kv_transfer_params = None
        if first_tokens is None or sampling is None:
            return PrefillResult(kv_params, output)
        first_tokens.begin_answer(request, output)
        return PrefillResult(kv_params, output, gives_first_token=True)

    async def decode(self, request: DecodeRequest) -> AsyncGenerator[RequestOutput, None]:
        """Generate; yields vLLM's outputs of the kind that `request.params.output_kind` asks for.

        Raises:
            as `prefill`.
        """
        sampling = request.params if request.kv_params is None else decode_sampling(request.params)
        outputs = self._outputs(request, sampling, request.kv_params, request.num_given_tokens)
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                yield output

    async def release_kv(self, request_id: str, kv_params: KVParams) -> None:
        """Drop a KV cache that prefill holds and no decode will pull."""
        await self.engine.release_kv(request_id, kv_params)

    def stats(self) -> LLMStats:
        """A moment of this worker."""
        account, load = self._account, self._load
        unanswered = account.unanswered_prompts()
        return LLMStats(
            process_id=os.getpid(),
            num_running=account.num_running,
            num_waiting=load.num_waiting,
            num_deferred=load.num_deferred,
            num_finished=account.num_finished + account.num_failed + account.num_cancelled,
            num_failed=account.num_failed,
            num_cancelled=account.num_cancelled,
            num_prompt_tokens=account.num_prompt_tokens,
            num_generated_tokens=account.num_generated_tokens,
            embedding_bytes=account.embedding_bytes,
            # The engine reports after steps: after one that was its last for a while the cache empties unseen.
            kv_cache_use=load.kv_cache_use if account.num_running else 0.0,
            kv_cache_tokens=load.kv_cache_tokens,
            num_unanswered_prompts=len(unanswered),
            num_unanswered_tokens=sum(unanswered),
            num_token_gaps=load.num_token_gaps,
            token_gaps_s=load.token_gaps_s,
        )

    async def check_health(self) -> None:
        """Raises WorkerLost when the engine is dead."""
        await self.engine.check_health()

    def close(self) -> None:
        """End the engine and give back what the worker holds."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        if self._failures is not None:
            self._failures.close()
            self._failures = None

    async def _outputs(
        self,
        request: PrefillRequest | DecodeRequest,
        sampling: SamplingParams,
        kv_params: KVParams | None,
        num_given_tokens: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        """The engine's outputs, with its failures typed."""
        outputs = self.engine.generate(
            request.prompt,
            sampling,
            request.request_id,
            request.options,
            timeout_s=request.timeout_s,
            kv_params=kv_params,
            ec_params=self._ec_params(request.request_id, request.embeddings, request.timeout_s),
            num_given_tokens=num_given_tokens,
        )
        with self._account.running(request) as progress:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    progress.output = output
                    await self._raise_if_failed(request.request_id, output)
                    yield output

    def _ec_params(
        self, request_id: str, embeddings: tuple[EmbeddingRef, ...], timeout_s: float
    ) -> dict[str, Any] | None:
        if self._failures is None or not embeddings:
            return None
        return request_params(request_id, embeddings, timeout_s)

    async def _raise_if_failed(self, request_id: str, output: RequestOutput) -> None:
        """Turn the engine's bare "error" into the typed cause that the connector reported."""
        if not any(completion.finish_reason == "error" for completion in output.outputs):
            return
        cause = None
        if self._failures is not None:
            cause = await asyncio.to_thread(self._failures.take, request_id, _FAILURE_REPORT_WAIT_S)
        raise cause or RetryableError("the engine failed the request without giving a reason")
