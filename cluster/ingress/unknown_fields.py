"""Refuses request fields that nobody knows, as the OpenAI API does; vLLM would drop them with a line in its log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel
from vllm.exceptions import VLLMValidationError
from vllm.renderers.online_renderer import OnlineRenderer

_Render = Callable[..., Awaitable[Any]]


def refuse_unknown_fields(renderer: OnlineRenderer) -> None:
    """Have the renderer check every request before it renders one; it is the first thing all endpoints do."""
    renderer.render_chat = _checked(renderer.render_chat)
    renderer.render_completion = _checked(renderer.render_completion)
    renderer.render_responses = _checked(renderer.render_responses)


def _checked(render: _Render) -> _Render:
    async def checked(request: BaseModel, **options: Any) -> Any:
        unknown = sorted(request.model_extra or {})
        if unknown:
            names = ", ".join(repr(name) for name in unknown)
            raise VLLMValidationError(f"unknown request field: {names}", parameter=unknown[0])
        return await render(request, **options)

    return checked
