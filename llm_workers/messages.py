"""What the pipeline and the language model workers say to each other (Ray calls)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from transfer.messages import EmbeddingRef, Metadata, Modality

KVParams = dict[str, Any]
"""vLLM's kv_transfer_params: opaque, handed from prefill to decode as they are."""


@dataclass(frozen=True, slots=True)
class PromptItem:
    """One media item inside a prompt: where its placeholder tokens stand and what the model must know of it.

    Attributes:
        key: content key; also the name of the embedding in the engine's encoder cache and in its prefix cache.
        offset, length: range of placeholder tokens in `Prompt.token_ids`.
        metadata: what the language model needs besides the embedding, for example image_grid_thw.
        embed_runs: (start, length) of the tokens in the range that rows of the embedding stand for; empty: all of
            them. The others are text that belongs to the item, such as the times between the frames of a video.
    """

    modality: Modality
    key: str
    offset: int
    length: int
    metadata: tuple[Metadata, ...]
    embed_runs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt: token ids with every placeholder expanded, and the items that belong to them."""

    token_ids: list[int]
    items: tuple[PromptItem, ...] = ()
    text: str | None = None
    cache_salt: str | None = None

    def followed_by(self, token_ids: tuple[int, ...]) -> Prompt:
        """This prompt with the beginning of its answer behind it."""
        return replace(self, token_ids=[*self.token_ids, *token_ids], text=None) if token_ids else self


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """Per-request options of vLLM's `generate` that are passed on as they are."""

    priority: int = 0
    reasoning_ended: bool | None = None
    reasoning_parser_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PrefillRequest:
    """Pipeline to prefill: compute the KV cache of this prompt.

    Attributes:
        embeddings: where to fetch each item's embedding, one reference per distinct item key.
        num_given_tokens: as for decode.
        timeout_s: time left for the whole request.
        traceparent: the caller's place in a trace (W3C Trace Context), if the request is traced.
    """

    request_id: str
    prompt: Prompt
    params: SamplingParams
    embeddings: tuple[EmbeddingRef, ...]
    timeout_s: float
    options: GenerateOptions = field(default_factory=GenerateOptions)
    traceparent: str | None = None
    num_given_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PrefillResult:
    """Prefill to pipeline: the KV cache is ready to be pulled.

    Attributes:
        output: vLLM's output of the prefill step; it holds prompt logprobs and cache statistics.
        gives_first_token: `output` is the first one of the answer, as decode would give it; unless it is finished,
            decode is to go on behind its token.
    """

    kv_params: KVParams
    output: RequestOutput
    gives_first_token: bool = False


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """Pipeline to decode: generate. With `kv_params` the prompt's KV cache is pulled, without it is computed here.

    Attributes:
        embeddings: as for prefill; used only when the prompt is computed here.
        num_given_tokens: how many tokens at the end of the prompt belong to the answer: prefill or a replica that was
            lost had generated them, and they were given to the client. `params` are those of the whole answer. The KV
            cache lacks the last of those that prefill gave.
        traceparent: as for prefill.
    """

    request_id: str
    prompt: Prompt
    params: SamplingParams
    kv_params: KVParams | None
    embeddings: tuple[EmbeddingRef, ...]
    timeout_s: float
    options: GenerateOptions = field(default_factory=GenerateOptions)
    traceparent: str | None = None
    num_given_tokens: int = 0
