"""What a model's prompt has in place of a media item: the placeholder to look for, and what it becomes.

As in vLLM's own processors of these models, whose prompts the language models must see to the token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.tokenizers import TokenizerLike

from encoder_workers.told_placeholders import read_told
from transfer import EncodeTicket, Modality

_PLACEHOLDER_FIELDS: dict[str, Modality] = {
    "image_token_id": "image",
    "image_token_index": "image",
    "video_token_id": "video",
    "video_token_index": "video",
    "audio_token_id": "audio",
    "audio_token_index": "audio",
}
_TIMESTAMPED_VIDEO = ("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration")
_INTERNVL_HF = "InternVLForConditionalGeneration"
_INTERNVL_CHAT = "InternVLChatModel"


@dataclass(frozen=True)
class Expansion:
    """What one item takes in the prompt.

    Attributes:
        embed_runs: (start, length) of the runs of tokens that the rows of its embedding stand for, in order.
    """

    token_ids: tuple[int, ...]
    embed_runs: tuple[tuple[int, int], ...]


class PlaceholderRule(Protocol):
    """One modality's placeholder."""

    @property
    def target(self) -> tuple[int, ...]:
        """Token ids of the placeholder as the chat template writes it."""
        ...

    def expand(self, ticket: EncodeTicket) -> Expansion:
        """What it becomes for this item."""
        ...


@dataclass(frozen=True)
class Repeated:
    """The placeholder token, or `token_id`, once per row of the embedding, between `before` and `after`."""

    target: tuple[int, ...]
    token_id: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def expand(self, ticket: EncodeTicket) -> Expansion:
        token_ids = (*self.before, *(self.token_id,) * ticket.num_tokens, *self.after)
        return Expansion(token_ids, ((len(self.before), ticket.num_tokens),))


@dataclass(frozen=True)
class Timestamped:
    """Qwen3-VL's videos: each temporal step has its time as text before it and stands between vision markers."""

    target: tuple[int, ...]
    token_id: int
    start_id: int
    end_id: int
    tokenizer: TokenizerLike

    def expand(self, ticket: EncodeTicket) -> Expansion:
        times = next(metadata for metadata in ticket.metadata if metadata.name == "timestamps").values
        num_per_step = ticket.num_tokens // len(times)
        token_ids: list[int] = []
        runs = []
        for time_s in times:
            token_ids += self.tokenizer.encode(f"<{time_s:.1f} seconds>", add_special_tokens=False)
            token_ids.append(self.start_id)
            runs.append((len(token_ids), num_per_step))
            token_ids += [self.token_id] * num_per_step
            token_ids.append(self.end_id)
        return Expansion(tuple(token_ids), tuple(runs))


@dataclass(frozen=True)
class Told:
    """What the items' own tickets tell, from vLLM's processor of the model."""

    target: tuple[int, ...]

    def expand(self, ticket: EncodeTicket) -> Expansion:
        told = read_told(ticket.metadata)
        assert told is not None, "a ticket of vLLM's encoder tells its placeholder"
        return Expansion(told.token_ids, told.embed_runs)


def told_rules(tickets: Mapping[Modality, Sequence[EncodeTicket]]) -> dict[Modality, PlaceholderRule]:
    """The rules that tickets tell; none where the ingress has its own."""
    told = {modality: read_told(of_modality[0].metadata) for modality, of_modality in tickets.items() if of_modality}
    return {modality: Told(placeholder.target) for modality, placeholder in told.items() if placeholder is not None}


def placeholder_rules(config: VllmConfig, tokenizer: TokenizerLike) -> dict[Modality, PlaceholderRule]:
    """The rules of a model, by modality, from its configuration; none for a model of text alone."""
    hf_config = config.model_config.hf_config.to_dict()
    architecture = config.model_config.architecture
    if architecture == _INTERNVL_CHAT:
        target = tuple(tokenizer.encode("<image>", add_special_tokens=False))
        return {"image": _between_markers(target, _token_id(tokenizer, "<IMG_CONTEXT>"), tokenizer)}
    rules: dict[Modality, PlaceholderRule] = {
        modality: Repeated((token_id,), token_id) for modality, token_id in _named_tokens(hf_config).items()
    }
    if architecture == _INTERNVL_HF:
        token_id = hf_config["image_token_id"]
        return {"image": _between_markers((token_id,), token_id, tokenizer)}
    if architecture in _TIMESTAMPED_VIDEO:
        token_id = hf_config["video_token_id"]
        start_id, end_id = hf_config["vision_start_token_id"], hf_config["vision_end_token_id"]
        rules["video"] = Timestamped((token_id,), token_id, start_id, end_id, tokenizer)
    return rules


def _named_tokens(hf_config: Mapping[str, Any]) -> dict[Modality, int]:
    return {modality: hf_config[name] for name, modality in _PLACEHOLDER_FIELDS.items() if hf_config.get(name)}


def _between_markers(target: tuple[int, ...], token_id: int, tokenizer: TokenizerLike) -> Repeated:
    before, after = _token_id(tokenizer, "<img>"), _token_id(tokenizer, "</img>")
    return Repeated(target, token_id, (before,), (after,))


def _token_id(tokenizer: TokenizerLike, token: str) -> int:
    """The id of a special token. Raises VLLMValidationError for a tokenizer without it."""
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        raise VLLMValidationError(f"the checkpoint's tokenizer has no token {token}, which this model needs")
    return int(token_id)
