"""One encoding for all who want the same content, and nobody left behind by one that ends or is given up."""

from __future__ import annotations

import torch

from encoder_workers.encodings import Encoding, Encodings
from transfer import HostEmbedding


def _nothing(key: str) -> None:
    """No cache."""


def _begun(encodings: Encodings, key: str, transfer_id: str, work: float = 1.0) -> Encoding:
    encoding = encodings.begin(key, transfer_id, work, _nothing)
    assert isinstance(encoding, Encoding)
    return encoding


def test_later_transfers_join_and_end_together() -> None:
    encodings = Encodings()
    first = _begun(encodings, "cat", "1", work=100.0)
    _begun(encodings, "dog", "2", work=10.0)
    assert encodings.begin("cat", "3", 100.0, _nothing) is None
    assert (len(encodings), encodings.pending_work, encodings.total_work) == (2, 110.0, 110.0)
    assert encodings.end(first) == {"1", "3"}
    assert (len(encodings), encodings.pending_work, encodings.total_work) == (1, 10.0, 110.0)


def test_what_is_cached_is_not_begun() -> None:
    encodings = Encodings()
    embedding = HostEmbedding.of(torch.zeros(1, 1))
    assert encodings.begin("cat", "1", 100.0, lambda key: embedding if key == "cat" else None) is embedding
    assert (len(encodings), encodings.total_work) == (0, 0.0)


def test_one_that_nobody_wants_is_given_up_and_can_be_begun_again() -> None:
    encodings = Encodings()
    encoding = _begun(encodings, "cat", "1")
    encodings.begin("cat", "2", 1.0, _nothing)
    assert encodings.is_wanted(encoding, lambda transfer_id: transfer_id == "2")
    assert not encodings.is_wanted(encoding, lambda transfer_id: False)
    assert _begun(encodings, "cat", "3").transfers == {"3"}
