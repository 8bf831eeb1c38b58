"""Refuses request fields that nobody knows, as the OpenAI API does; vLLM would drop them with a line in its log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel
from starlette.datastructures import State
from vllm.exceptions import VLLMValidationError

CHECKED_REQUESTS = (
    "BatchChatCompletionRequest",
    "ChatCompletionRequest",
    "CompletionRequest",
    "ResponsesRequest",
    "TokenizeChatRequest",
    "TokenizeCompletionRequest",
)
"""Names of the bodies that are checked, as the OpenAPI document has them."""

_Endpoint = Callable[..., Awaitable[Any]]


def refuse_unknown_fields(state: State) -> None:
    """Have every endpoint check its request before it renders or tokenises one.

    Args:
        state: the application's, initialised.
    """
    renderer, batches, tokenization = state.online_renderer, state.openai_serving_chat_batch, state.serving_tokenization
    renderer.render_chat = _checked(renderer.render_chat)
    renderer.render_completion = _checked(renderer.render_completion)
    renderer.render_responses = _checked(renderer.render_responses)
    batches.create_batch_chat_completion = _checked(batches.create_batch_chat_completion)
    tokenization.create_tokenize = _checked(tokenization.create_tokenize)


def _checked(endpoint: _Endpoint) -> _Endpoint:
    async def checked(request: BaseModel, *inputs: Any, **options: Any) -> Any:
        unknown = sorted(request.model_extra or {})
        if unknown:
            names = ", ".join(repr(name) for name in unknown)
            raise VLLMValidationError(f"unknown request field: {names}", parameter=unknown[0])
        return await endpoint(request, *inputs, **options)

    return checked
