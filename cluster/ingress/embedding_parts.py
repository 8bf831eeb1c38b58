"""Carries embeddings that clients computed through vLLM's renderer: named like media, by URLs that only we know.

The parts are vLLM's own (image_embeds, video_embeds, audio_embeds), and so is the setting that admits them. vLLM would
open their tensors in this process to build the prompt; here the encoder does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import pybase64
from vllm.entrypoints.chat_utils import ChatCompletionMessageParam
from vllm.exceptions import VLLMValidationError

from encoder_workers.given_embeddings import Field, pack_given

_URL_OF = {"image_embeds": "image_url", "video_embeds": "video_url", "audio_embeds": "audio_url"}
_SCHEME = "triptych-given:"


@dataclass(frozen=True, slots=True)
class GivenPart:
    """One content part: a base64 tensor, or an object of base64 tensors and lists of numbers."""

    kind: str
    payload: object

    def packed(self) -> bytes:
        """The bytes that the encoder opens. Raises VLLMValidationError when the part is none of the above."""
        payload = self.payload if isinstance(self.payload, Mapping) else {self.kind: self.payload}
        return pack_given({str(name): self._field(str(name), value) for name, value in payload.items()})

    def _field(self, name: str, value: object) -> Field:
        if isinstance(value, list) and all(type(number) in (int, float) for number in value):
            return value
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                return pybase64.b64decode(value, validate=True)
        raise VLLMValidationError(
            f"{self.kind}: {name} must be a tensor saved by torch.save, in base64, or a list of numbers",
            parameter=self.kind,
        )


_parts: ContextVar[tuple[GivenPart, ...]] = ContextVar("triptych_given_parts", default=())


@contextlib.contextmanager
def naming_embeddings(
    messages: Sequence[ChatCompletionMessageParam],
) -> Iterator[list[ChatCompletionMessageParam]]:
    """The messages with a media URL for each embedding, which `given_part` knows while this lasts."""
    found: list[GivenPart] = []
    named = [_named(message, found) for message in messages]
    token = _parts.set(tuple(found))
    try:
        yield named
    finally:
        _parts.reset(token)


def given_part(url: str) -> GivenPart | None:
    """The embedding that a URL stands for; None for any other URL."""
    return next((part for index, part in enumerate(_parts.get()) if url == f"{_SCHEME}{index}"), None)


def _named(message: ChatCompletionMessageParam, found: list[GivenPart]) -> ChatCompletionMessageParam:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message
    # Read once: what pydantic validates lazily cannot be read again.
    parts = [_named_part(part, found) for part in cast("Sequence[Any]", content)]
    return cast(ChatCompletionMessageParam, {**message, "content": parts})


def _named_part(part: Any, found: list[GivenPart]) -> Any:
    kind = next((kind for kind in _URL_OF if isinstance(part, Mapping) and kind in part), None)
    if kind is None or part.get("type", kind) != kind:
        return part
    if part[kind] is None:
        raise VLLMValidationError(f"{kind} has no content; items named by uuid alone are not kept here", parameter=kind)
    url = f"{_SCHEME}{len(found)}"
    found.append(GivenPart(kind, part[kind]))
    return {"type": _URL_OF[kind], _URL_OF[kind]: {"url": url}}
