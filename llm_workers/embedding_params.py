"""What a request tells the embedding connector, in `ec_transfer_params`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transfer import EmbeddingRef


@dataclass(frozen=True, slots=True)
class EmbeddingParams:
    """One request's embeddings, as the connector reads them.

    Attributes:
        report_id: name under which a failure is reported to the worker.
        refs: references by item key.
        timeout_s: time that remained for fetching when the request was sent.
    """

    report_id: str
    refs: dict[str, EmbeddingRef]
    timeout_s: float


def request_params(report_id: str, refs: Sequence[EmbeddingRef], timeout_s: float) -> dict[str, Any]:
    """Plain values, since they cross vLLM's own sockets."""
    return {"report_id": report_id, "timeout_s": timeout_s, "items": [ref.to_dict() for ref in refs]}


def parse_params(params: dict[str, Any]) -> EmbeddingParams:
    """Inverse of `request_params`."""
    refs = [EmbeddingRef.from_dict(ref) for ref in params["items"]]
    return EmbeddingParams(params["report_id"], {ref.item_key: ref for ref in refs}, params["timeout_s"])
