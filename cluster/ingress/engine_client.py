"""vLLM's EngineClient over the pipeline: what its OpenAI application takes for an engine is the whole cluster."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import replace
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.protocol import EngineClient
from vllm.exceptions import VLLMValidationError
from vllm.inputs import EngineInput
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor

from cluster.ingress.errors import http_error
from cluster.ingress.fan_out import merge_sequences
from cluster.ingress.renderer import TicketedInput, TicketRenderer, ticketed_part
from cluster.ingress.scope import NO_TENANT, current_request
from cluster.ingress.status import StatusSource
from cluster.pipeline import Pipeline
from cluster.request import Generation, RequestContext
from llm_workers.messages import GenerateOptions, Prompt
from transfer import QueueFull, TriptychError

logger = logging.getLogger(__name__)

_SUPPORTED_TASKS = ("generate",)
# By these the stages tell each other where to fetch from; a client that could would have them fetch from anywhere.
_OWN_ARGUMENTS = ("kv_transfer_params", "ec_transfer_params")
_ONE_ENGINE_ONLY = "this call is for one engine; a Triptych service has many: use Ray Serve's own tools"


class PipelineClient(EngineClient):  # type: ignore[misc]
    """Generates through encode, prefill and decode. Calls that make sense for a single engine alone are refused."""

    def __init__(self, vllm_config: VllmConfig, pipeline: Pipeline, status: StatusSource, max_completions: int) -> None:
        """Args: `max_completions`: the highest `n` of a prompt, each of which takes as much work as a request."""
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.renderer = TicketRenderer(vllm_config, pipeline)
        self.input_processor = InputProcessor(vllm_config, self.renderer)
        self._pipeline = pipeline
        self._status = status
        self._max_completions = max_completions

    is_running = property(lambda self: True)
    is_stopped = property(lambda self: False)
    errored = property(lambda self: False)
    dead_error = property(lambda self: RuntimeError("the ingress holds no engine that could die"))

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Asked by vLLM's application before it reads a request's prompt, and so before any stage works for it.

        Raises:
            GracefulHTTPError: requests wait already where every request has to go.
        """
        if self._pipeline.is_full:
            raise http_error(
                QueueFull("prefill or decode has no room: come again after the seconds that Retry-After says")
            )

    async def generate(
        self,
        prompt: EngineInput,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
        session_id: str | None = None,
        reasoning_ended: bool | None = None,
        reasoning_parser_kwargs: dict[str, Any] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """vLLM's outputs for one prompt.

        Raises:
            VLLMValidationError: the prompt or the parameters cannot be served.
            GracefulHTTPError: a stage failed; carries the HTTP status.
        """
        if lora_request is not None:
            raise VLLMValidationError("LoRA adapters are not served")
        self._check(sampling_params)
        # The same checks that an engine makes, made before any stage works.
        self.input_processor.process_inputs(request_id, prompt, sampling_params, _SUPPORTED_TASKS)
        generation = _generation(
            prompt,
            sampling_params,
            request_id,
            GenerateOptions(priority, reasoning_ended, reasoning_parser_kwargs),
            current_request().tenant,
        )
        try:
            async with contextlib.aclosing(self._sequences(current_request(), generation)) as outputs:
                async for output in outputs:
                    output.request_id = request_id
                    yield output
        except TriptychError as error:
            logger.warning("request %s failed: %s [%s]", request_id, error, error.code)
            raise http_error(error) from error

    def _check(self, params: SamplingParams) -> None:
        """Refuse what an engine would take and a service of many must not."""
        own = next((name for name in _OWN_ARGUMENTS if name in (params.extra_args or {})), None)
        if own is not None:
            raise VLLMValidationError(f"{own} is not taken from clients", parameter=own)
        if params.n > self._max_completions:
            raise VLLMValidationError(f"n must be at most {self._max_completions} here, not {params.n}", parameter="n")

    def _sequences(self, context: RequestContext, generation: Generation) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of all `n` sequences of a request."""
        if generation.params.n == 1:
            return self._pipeline.generate(context, generation)
        children = [self._child(context, generation, index) for index in range(generation.params.n)]
        return merge_sequences(children, generation.params)

    async def _child(
        self, context: RequestContext, generation: Generation, index: int
    ) -> AsyncGenerator[RequestOutput, None]:
        """One of `n` sequences: a request of its own, with its own seed and its own leases."""
        params = generation.params.clone()
        params.n = 1
        if params.seed is not None:
            params.seed += index
        items = generation.items
        if index and items:
            asked = [(item.media.modality, self._pipeline.ask(context, item.media, item.options)) for item in items]
            items = tuple(await self._pipeline.encode(context, asked))
        child = replace(generation, request_id=f"{generation.request_id}-{index}", items=items, params=params)
        async with contextlib.aclosing(self._pipeline.generate(context, child)) as outputs:
            async for output in outputs:
                yield output

    async def encode(self, prompt: Any, pooling_params: PoolingParams, request_id: str, **_: Any) -> Any:
        raise VLLMValidationError("this service generates; it does not embed text")

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Nothing: closing `generate`'s generator aborts."""

    async def notify_kv_transfer_request_rejected(
        self, request_id: str, kv_transfer_params: dict[str, Any], *, data_parallel_rank: int | None = None
    ) -> None:
        """Nothing: clients hold no KV transfers."""

    async def is_tracing_enabled(self) -> bool:
        return False

    async def do_log_stats(self) -> None:
        """Nothing: the stages log their own."""

    async def check_health(self) -> None:
        """Raises EngineDeadError while a stage has no replica that answers; `/health` then says 503."""
        missing = [name for name, replicas in (await self._status()).items() if not replicas]
        if missing:
            raise EngineDeadError(f"no replica answers in: {', '.join(missing)}")

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return _SUPPORTED_TASKS

    async def start_profile(self) -> None:
        raise VLLMValidationError(_ONE_ENGINE_ONLY)

    async def stop_profile(self) -> None:
        raise VLLMValidationError(_ONE_ENGINE_ONLY)

    async def reset_mm_cache(self) -> None:
        raise VLLMValidationError(_ONE_ENGINE_ONLY)

    async def reset_encoder_cache(self) -> None:
        raise VLLMValidationError(_ONE_ENGINE_ONLY)

    async def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        raise VLLMValidationError(_ONE_ENGINE_ONLY)

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        raise VLLMValidationError(_ONE_ENGINE_ONLY)

    async def wake_up(self, tags: list[str] | None = None) -> None:
        raise VLLMValidationError(_ONE_ENGINE_ONLY)

    async def is_sleeping(self) -> bool:
        return False

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        raise VLLMValidationError("LoRA adapters are not served")

    async def pause_generation(self, **_: Any) -> None:
        raise VLLMValidationError(_ONE_ENGINE_ONLY)

    async def resume_generation(self) -> None:
        raise VLLMValidationError(_ONE_ENGINE_ONLY)

    async def is_paused(self) -> bool:
        return False

    def shutdown(self, timeout: float | None = None) -> None:
        self.renderer.shutdown()


def _generation(
    prompt: EngineInput, params: SamplingParams, request_id: str, options: GenerateOptions, tenant: str
) -> Generation:
    """The pipeline's form of a rendered prompt."""
    ticketed = ticketed_part(prompt)
    if ticketed is None:
        if prompt["type"] != "token":
            raise VLLMValidationError("prompts of embeddings are not served")
        ticketed = TicketedInput(prompt=Prompt(list(prompt["prompt_token_ids"])), items=())
    rendered = replace(ticketed["prompt"], text=prompt.get("prompt"), cache_salt=_cache_salt(tenant, prompt))
    return Generation(request_id, rendered, ticketed["items"], params, options)


def _cache_salt(tenant: str, prompt: EngineInput) -> str | None:
    """What keeps entries of the engines' prefix cache apart: tenants, since a hit tells, and what the client wants."""
    salt: str | None = prompt.get("cache_salt")
    if tenant == NO_TENANT:
        return salt
    return f"{tenant}:{salt}" if salt else tenant
