"""The three stages as the pipeline sees them: one small interface each, whatever carries the calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from vllm.outputs import RequestOutput

from llm_workers.messages import DecodeRequest, KVParams, PrefillRequest, PrefillResult
from transfer import EncodeReply, EncodeRequest


class EncoderStage(Protocol):
    """Raises EncoderLost when the replica died, Busy when none takes the items."""

    async def encode(self, request: EncodeRequest) -> EncodeReply:
        """Tickets for the request's items."""
        ...


class PrefillStage(Protocol):
    """Raises WorkerLost when the replica died, and what `LLMWorker.prefill` raises."""

    async def prefill(self, request: PrefillRequest) -> PrefillResult:
        """The KV cache of the request's prompt; cancelling the call aborts the work."""
        ...


class DecodeStage(Protocol):
    """Raises WorkerLost when the replica died, and what `LLMWorker.decode` raises."""

    def decode(self, request: DecodeRequest) -> AsyncGenerator[RequestOutput, None]:
        """The request's outputs; closing the generator aborts the work."""
        ...

    async def release_kv(self, request_id: str, kv_params: KVParams, timeout_s: float) -> None:
        """Have prefill's KV cache freed, since nobody will pull it. Raises DeadlineExceeded after `timeout_s`."""
        ...
