"""How one engine's embedding connector works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EmbeddingPath:
    """How the engine's embedding connector works; travels in `ec_connector_extra_config`.

    Attributes:
        store_bytes: host memory for fetched embeddings.
        fingerprint: what the encoder's embeddings must match.
        failure_endpoint: where the connector reports why an embedding could not be had.
        channels: ways for embeddings to arrive, best first. A list, since the engine may read it back from JSON.
        num_streams: connections to each encoder that large embeddings share.
        curve_key_file: file of the cluster's key, if any; never the key itself, since engines log their settings.
    """

    store_bytes: int
    fingerprint: str
    failure_endpoint: str
    channels: list[str]
    num_streams: int
    curve_key_file: str | None
