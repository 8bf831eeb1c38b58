"""What an engine raises comes out typed: whose fault it was decides the status that the client is told."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any

import pytest
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

from llm_workers.engine import LanguageModelEngine
from llm_workers.messages import GenerateOptions, Prompt
from transfer import BadMedia, QueueFull, TriptychError, WorkerLost


class FailingEngine:
    """An AsyncLLM of which every request ends with the same error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def generate(self, *_: Any, **__: Any) -> AsyncGenerator[RequestOutput, None]:
        raise self._error
        yield


@pytest.mark.parametrize(
    ("error", "typed"),
    [
        (VLLMValidationError("the prompt is too long", parameter="max_tokens", value=9), BadMedia),
        (GracefulHTTPError("full", HTTPStatus.SERVICE_UNAVAILABLE), QueueFull),
        (EngineDeadError(), WorkerLost),
    ],
)
async def test_errors_of_the_engine_are_typed(error: Exception, typed: type[TriptychError]) -> None:
    engine = object.__new__(LanguageModelEngine)
    engine._engine = FailingEngine(error)  # type: ignore[assignment]
    outputs = engine.generate(
        Prompt([1]), SamplingParams(), "r", GenerateOptions(), timeout_s=10.0, kv_params=None, ec_params=None
    )
    with pytest.raises(TriptychError) as raised:
        await anext(outputs)
    assert type(raised.value) is typed
    if typed is BadMedia:
        assert raised.value.message == str(error)
