"""Turns a rendered prompt into vLLM's engine input: items as metadata alone, no pixels."""

from __future__ import annotations

import torch
from vllm.inputs import EngineInput, mm_input, tokens_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)

from llm_workers.messages import Prompt, PromptItem


def engine_input(prompt: Prompt) -> EngineInput:
    """The input that `EngineClient.generate` takes for this prompt."""
    if not prompt.items:
        return tokens_input(list(prompt.token_ids), prompt=prompt.text, cache_salt=prompt.cache_salt)
    kwargs: dict[str, list[MultiModalKwargsItem]] = {}
    hashes: dict[str, list[str]] = {}
    ranges: dict[str, list[PlaceholderRange]] = {}
    for item in prompt.items:
        kwargs.setdefault(item.modality, []).append(_kwargs_item(item))
        hashes.setdefault(item.modality, []).append(item.key)
        ranges.setdefault(item.modality, []).append(_range(item))
    return mm_input(
        list(prompt.token_ids),
        MultiModalKwargsItems(kwargs),
        hashes,
        ranges,
        prompt=prompt.text,
        cache_salt=prompt.cache_salt,
    )


def _range(item: PromptItem) -> PlaceholderRange:
    """Where the item stands, and which tokens of it are replaced by rows of its embedding."""
    if not item.embed_runs:
        return PlaceholderRange(offset=item.offset, length=item.length)
    is_embed = torch.zeros(item.length, dtype=torch.bool)
    for start, length in item.embed_runs:
        is_embed[start : start + length] = True
    return PlaceholderRange(offset=item.offset, length=item.length, is_embed=is_embed)


def _kwargs_item(item: PromptItem) -> MultiModalKwargsItem:
    """The item's metadata as vLLM's fields; integer values stay integers on the CPU (grids are read there)."""
    return MultiModalKwargsItem(
        {
            metadata.name: MultiModalFieldElem(
                data=torch.tensor(metadata.nested()), field=MultiModalBatchedField(keep_on_cpu=True)
            )
            for metadata in item.metadata
        }
    )
