"""Placeholders become what each model's prompt has in their place, and every item knows where its tokens stand."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.qwen3_vl import Qwen3VLMultiModalProcessor

from cluster.ingress.placeholder_rules import PlaceholderRule, Repeated, Timestamped, told_rules
from cluster.ingress.placeholders import expand_placeholders
from encoder_workers.told_placeholders import ToldPlaceholder, read_told
from llm_workers.engine_input import engine_input
from llm_workers.messages import Prompt
from transfer import EncodeTicket, Metadata, Modality

_IMAGE, _VIDEO, _START, _END = 900, 901, 902, 903
_RULES: dict[Modality, PlaceholderRule] = {
    "image": Repeated((_IMAGE,), _IMAGE),
    "video": Repeated((_VIDEO,), _VIDEO),
}


def _byte_tokenizer(merges: list[tuple[str, str]], special: list[str]) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, *(first + second for first, second in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


_TOKENIZER = _byte_tokenizer([], [])


def _ticket(
    key: str, num_tokens: int, modality: Modality = "image", metadata: tuple[Metadata, ...] = ()
) -> EncodeTicket:
    return EncodeTicket(
        item_key=key,
        modality=modality,
        num_tokens=num_tokens,
        width=4,
        dtype="float32",
        layout="main",
        metadata=metadata,
        transfer_id=key,
        endpoints=("tcp://127.0.0.1:1",),
        expected_bytes=num_tokens * 16,
        fingerprint="f",
    )


def test_each_item_in_its_place() -> None:
    tickets: dict[Modality, list[EncodeTicket]] = {
        "image": [_ticket("a", 3), _ticket("b", 1)],
        "video": [_ticket("v", 2, "video")],
    }
    expanded, items = expand_placeholders([1, _IMAGE, 2, _VIDEO, 3, _IMAGE], _RULES, tickets, _TOKENIZER)
    assert expanded == [1, _IMAGE, _IMAGE, _IMAGE, 2, _VIDEO, _VIDEO, 3, _IMAGE]
    assert [(item.key, item.offset, item.length) for item in items] == [("a", 1, 3), ("v", 5, 2), ("b", 8, 1)]
    for item in items:
        assert set(expanded[item.offset : item.offset + item.length]) <= {_IMAGE, _VIDEO}
        assert item.embed_runs == ()


def test_a_ticket_of_vllms_encoder_tells_what_its_item_takes() -> None:
    """The model of a ticket may be one whose prompts this code has never heard of."""
    told = [
        ToldPlaceholder((_IMAGE,), (7, 7, _IMAGE, _IMAGE, 8, _IMAGE), ((2, 2), (5, 1))),
        ToldPlaceholder((_IMAGE,), (_IMAGE,) * 4, ((0, 4),)),
    ]
    grid = Metadata.of("grid", [1, 2, 3])
    images = [_ticket(key, n, metadata=(*t.arrays(), grid)) for key, n, t in zip("ab", (3, 4), told, strict=True)]
    assert [read_told(ticket.metadata) for ticket in images] == told
    rules = told_rules({"image": images})
    expanded, items = expand_placeholders([1, _IMAGE, 2, _IMAGE], rules, {"image": images}, _TOKENIZER)
    assert expanded == [1, *told[0].token_ids, 2, *told[1].token_ids]
    assert [(item.offset, item.length, item.embed_runs) for item in items] == [(1, 6, ((2, 2), (5, 1))), (8, 4, ())]
    # The language model is told what is its own.
    assert all(item.metadata == (grid,) for item in items)
    assert told_rules({"image": [_ticket("c", 1, metadata=(grid,))]}) == {}


@pytest.mark.parametrize("token_ids", [[1, 2], [1, _IMAGE, _IMAGE, 2]], ids=["too few", "too many"])
def test_text_that_holds_placeholders_is_refused(token_ids: list[int]) -> None:
    with pytest.raises(VLLMValidationError, match="placeholder"):
        expand_placeholders(token_ids, _RULES, {"image": [_ticket("a", 3)]}, _TOKENIZER)


def test_a_placeholder_without_any_item_is_refused() -> None:
    with pytest.raises(VLLMValidationError, match="placeholder"):
        expand_placeholders([_VIDEO, _IMAGE], _RULES, {"image": [_ticket("a", 3)]}, _TOKENIZER)


def test_times_stand_between_the_steps_of_a_video() -> None:
    """To the token what vLLM's processor of Qwen3-VL writes, and its mask of embedded tokens."""
    rule = Timestamped((_VIDEO,), _VIDEO, _START, _END, _TOKENIZER)
    times = [0.25, 1.25, 12.0]
    expected = Qwen3VLMultiModalProcessor.get_video_repl(
        tokens_per_frame=[2] * 3,
        timestamps=times,
        tokenizer=_TOKENIZER,
        vision_start_token_id=_START,
        vision_end_token_id=_END,
        video_token_id=_VIDEO,
        select_token_id=True,
    )
    ticket = _ticket("v", 6, "video", (Metadata.of("video_grid_thw", (3, 2, 4)), Metadata.of("timestamps", times)))
    expanded, items = expand_placeholders([7, _VIDEO, 8], {"video": rule}, {"video": [ticket]}, _TOKENIZER)
    assert expanded == [7, *expected.full, 8]
    rendered = engine_input(Prompt(expanded, items))
    (placeholder,) = rendered["mm_placeholders"]["video"]
    assert (placeholder.offset, placeholder.length) == (1, len(expected.full))
    assert torch.equal(placeholder.is_embed, expected.is_embed(expected.full))
    assert placeholder.get_num_embeds() == 6


@pytest.mark.parametrize("merges", [[], [(">", "Ċ")]], ids=["apart", "merged with the line's end"])
def test_a_placeholder_of_several_tokens(merges: list[tuple[str, str]]) -> None:
    """InternVL's <image> is no token of its own: a tokenizer may join its end with what follows."""
    tokenizer = _byte_tokenizer(merges, ["<img>", "</img>", "<IMG_CONTEXT>"])
    before, context, after = tokenizer.convert_tokens_to_ids(["<img>", "<IMG_CONTEXT>", "</img>"])
    rule = Repeated(tuple(tokenizer.encode("<image>", add_special_tokens=False)), context, (before,), (after,))
    prompt = tokenizer.encode("ab<image>\ncd<image>\n?", add_special_tokens=False)
    tickets: dict[Modality, list[EncodeTicket]] = {"image": [_ticket("a", 2), _ticket("b", 3)]}
    expanded, items = expand_placeholders(prompt, {"image": rule}, tickets, tokenizer)
    wanted = "ab<img><IMG_CONTEXT><IMG_CONTEXT></img>\ncd<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n?"
    assert expanded == tokenizer.encode(wanted, add_special_tokens=False)
    assert [item.key for item in items] == ["a", "b"]
    for item, number in zip(items, (2, 3), strict=True):
        assert expanded[item.offset : item.offset + item.length] == [before, *[context] * number, after]
        assert item.embed_runs == ((1, number),)
    with pytest.raises(VLLMValidationError, match="2 image placeholders for 1 items"):
        expand_placeholders(prompt, {"image": rule}, {"image": [_ticket("a", 2)]}, tokenizer)
