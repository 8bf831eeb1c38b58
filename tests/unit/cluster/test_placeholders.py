"""Placeholders stand where the chat template put them and are as long as their items."""

from __future__ import annotations

import pytest
from vllm.exceptions import VLLMValidationError

from cluster.ingress.placeholders import expand_placeholders
from transfer import EncodeTicket, Modality

_IMAGE, _VIDEO = 900, 901
_IDS: dict[int, Modality] = {_IMAGE: "image", _VIDEO: "video"}


def _ticket(key: str, num_tokens: int, modality: Modality = "image") -> EncodeTicket:
    return EncodeTicket(
        item_key=key,
        modality=modality,
        num_tokens=num_tokens,
        width=4,
        dtype="float32",
        layout="main",
        metadata=(),
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
    expanded, items = expand_placeholders([1, _IMAGE, 2, _VIDEO, 3, _IMAGE], _IDS, tickets)
    assert expanded == [1, _IMAGE, _IMAGE, _IMAGE, 2, _VIDEO, _VIDEO, 3, _IMAGE]
    assert [(item.key, item.offset, item.length) for item in items] == [("a", 1, 3), ("v", 5, 2), ("b", 8, 1)]
    for item in items:
        assert set(expanded[item.offset : item.offset + item.length]) <= _IDS.keys()


@pytest.mark.parametrize("token_ids", [[1, 2], [1, _IMAGE, _IMAGE, 2]], ids=["too few", "too many"])
def test_text_that_holds_placeholders_is_refused(token_ids: list[int]) -> None:
    with pytest.raises(VLLMValidationError, match="placeholder"):
        expand_placeholders(token_ids, _IDS, {"image": [_ticket("a", 3)]})


def test_a_placeholder_without_any_item_is_refused() -> None:
    with pytest.raises(VLLMValidationError, match="placeholder"):
        expand_placeholders([_VIDEO, _IMAGE], _IDS, {"image": [_ticket("a", 3)]})
