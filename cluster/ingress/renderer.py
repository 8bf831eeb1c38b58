"""vLLM's chat renderer with one step replaced: media become tickets of the encoders instead of processed pixels."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, TypedDict, cast

from vllm.config import VllmConfig
from vllm.entrypoints.chat_utils import ChatCompletionMessageParam, ConversationMessage
from vllm.exceptions import VLLMValidationError
from vllm.inputs import EngineInput
from vllm.model_executor.model_loader import get_model_cls
from vllm.renderers.hf import HfRenderer
from vllm.renderers.inputs import DictPrompt
from vllm.renderers.params import ChatParams
from vllm.tokenizers import cached_tokenizer_from_config

from cluster.ingress.embedding_parts import naming_embeddings
from cluster.ingress.errors import http_error
from cluster.ingress.media import CarriedItem, asking_with
from cluster.ingress.placeholder_rules import placeholder_rules, told_rules
from cluster.ingress.placeholders import expand_placeholders
from cluster.ingress.scope import current_request
from cluster.ingress.unreadable import UNREADABLE, unreadable
from cluster.pipeline import Pipeline
from cluster.request import TicketedItem
from llm_workers.engine_input import engine_input
from llm_workers.messages import Prompt
from transfer import EncodeTicket, MediaItem, Modality, OptionValue, TriptychError


class TicketedInput(TypedDict):
    """What the renderer adds to vLLM's engine input, under the key `TICKETED_KEY`."""

    prompt: Prompt
    items: tuple[TicketedItem, ...]


TICKETED_KEY = "triptych"


def ticketed_part(prompt: EngineInput) -> TicketedInput | None:
    """What this renderer added to an engine input; None for text."""
    return cast("TicketedInput | None", cast(dict[str, Any], prompt).get(TICKETED_KEY))


class TicketRenderer(HfRenderer):  # type: ignore[misc]
    """Renders text and placeholders only; the number of placeholder tokens comes from the tickets."""

    def __init__(self, config: VllmConfig, pipeline: Pipeline) -> None:
        tokenizer = cached_tokenizer_from_config(config.model_config)
        super().__init__(config, tokenizer)
        self._pipeline = pipeline
        self._tokenizer_of_prompts = tokenizer
        self._rules = placeholder_rules(config, tokenizer)
        # The seam: vLLM awaits this attribute to process media, and nothing else of it touches pixels.
        self._process_multimodal_async = self._take_tickets

    def warmup_mm(self) -> None:
        """Load what the first message with media would load otherwise: the model's class, for its placeholders.

        This process never processes pixels, so vLLM's own warm-up, which does, is not run.
        """
        if self.model_config.is_multimodal_model:
            get_model_cls(self.model_config)

    async def render_messages_async(
        self, messages: list[ChatCompletionMessageParam], params: ChatParams
    ) -> tuple[list[ConversationMessage], DictPrompt]:
        """vLLM's rendering, while which the tickets of the messages' media are being got."""

        def ask(media: MediaItem) -> asyncio.Task[TicketedItem]:
            loader_kwargs = (params.media_io_kwargs or {}).get(media.modality)
            return self._pipeline.ask(current_request(), media, _options(params.mm_processor_kwargs, loader_kwargs))

        multimodal = self.model_config.multimodal_config
        takes_embeddings = multimodal is not None and multimodal.enable_mm_embeds
        named = naming_embeddings(messages) if takes_embeddings else contextlib.nullcontext(messages)
        with asking_with(ask), named as carried:
            try:
                rendered: tuple[list[ConversationMessage], DictPrompt] = await super().render_messages_async(
                    carried, params
                )
            except UNREADABLE as error:
                raise unreadable("a message", error, "messages") from error
            return rendered

    async def _take_tickets(
        self,
        token_ids: list[int],
        media: Mapping[str, list[CarriedItem | None]],
        *,
        mm_processor_kwargs: object = None,
        mm_uuids: object = None,
        media_io_kwargs: object = None,
        skip_mm_cache: bool = False,
    ) -> EngineInput:
        """The engine input of a prompt whose media are `media`, by modality in the order of their placeholders."""
        items = [item for items in media.values() for item in items]
        carried = [item for item in items if item is not None]
        if len(carried) < len(items):
            raise VLLMValidationError("a media part has no content; items named by uuid alone are not kept here")
        asked = [(item.media.modality, item.ticket) for item in carried]
        try:
            ticketed = await self._pipeline.encode(current_request(), asked)
        except TriptychError as error:
            raise http_error(error) from error
        tickets: dict[Modality, list[EncodeTicket]] = {}
        for item in ticketed:
            tickets.setdefault(item.media.modality, []).append(item.ticket)
        rules = told_rules(tickets) or self._rules
        expanded, prompt_items = expand_placeholders(token_ids, rules, tickets, self._tokenizer_of_prompts)
        prompt = Prompt(expanded, prompt_items)
        rendered = engine_input(prompt)
        cast(dict[str, Any], rendered)[TICKETED_KEY] = TicketedInput(prompt=prompt, items=tuple(ticketed))
        return rendered


def _options(
    processor_kwargs: Mapping[str, object] | None, loader_kwargs: Mapping[str, object] | None
) -> tuple[tuple[str, OptionValue], ...]:
    """An item's options for the encoder: vLLM's for the processor, and over them those for loading such media."""
    options: list[tuple[str, OptionValue]] = []
    for name, value in sorted({**(processor_kwargs or {}), **(loader_kwargs or {})}.items()):
        if not isinstance(value, int | float | str | bool):
            raise VLLMValidationError(f"mm_processor_kwargs.{name} must be a number, a string or a boolean")
        options.append((name, value))
    return tuple(options)
