"""Content affinity for encoders: the same picture goes to the same replica, whose cache then has it already.

Rendezvous hashing (Thaler and Ravishankar, 1998): every replica scores every content and the highest score wins; when a
replica comes or goes, only the contents move that it wins or has won. Distinct contents spread evenly, which Serve's
own choice by queue length cannot do for encoders: tickets are answered at once, so their queues always look empty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ray.serve.request_router import PendingRequest

from cluster.routing.ranked import RankedRouter
from transfer import EncodeRequest, MediaItem

_SAMPLE_BYTES = 64 * 1024


class ContentAffinityRouter(RankedRouter):
    """Ranks the replicas by affinity; one that has as many requests as it may is passed over for the next."""

    def rank(self, names: list[str], pending: PendingRequest | None) -> list[str]:
        content = _content_of(pending)
        return names if content is None else rank_by_affinity(content, names)


def rank_by_affinity(content: bytes, names: Sequence[str]) -> list[str]:
    """The replicas in the order in which this content prefers them; the same for every caller."""

    def score(name: str) -> bytes:
        return hashlib.blake2b(content + name.encode(), digest_size=8).digest()

    return sorted(names, key=score, reverse=True)


def content_digest(items: Sequence[MediaItem]) -> bytes:
    """What a request's placement goes by: its URLs, or samples of its bytes. No identity, only a good spread."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        if item.url is not None:
            digest.update(item.url.encode())
        if item.data is not None:
            digest.update(len(item.data).to_bytes(8, "big"))
            digest.update(item.data[:_SAMPLE_BYTES])
            digest.update(item.data[-_SAMPLE_BYTES:])
    return digest.digest()


def _content_of(pending: PendingRequest | None) -> bytes | None:
    """The digest of an encode call; None for calls about no content, such as statistics."""
    if pending is not None and pending.args and isinstance(pending.args[0], EncodeRequest):
        return content_digest(pending.args[0].items)
    return None
