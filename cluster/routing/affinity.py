"""Content affinity for encoders: the same picture goes to the same replica, whose cache then has it already.

Rendezvous hashing (Thaler and Ravishankar, 1998): every replica scores every content and the highest score wins; when a
replica comes or goes, only the contents move that it wins or has won. Where too much work waits at the replica that a
content prefers, the replica with the least work takes it: encoding it twice is better than waiting for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID

from cluster.routing.backlogs import EncoderBacklogs
from cluster.routing.ranked import RankedRouter, Reports
from cluster.routing.reports import encoder_report
from cluster.routing.turns import rank_by
from transfer import EncodeRequest, MediaItem

SPILL_WORK = "spill_work"
_SAMPLE_BYTES = 64 * 1024


class LeastWorkRouter(RankedRouter):
    """Prefers the replica with the least work that waits or is computed; equal ones take turns."""

    def initialize_state(self, **_: Any) -> None:
        super().initialize_state()
        self._backlogs = EncoderBacklogs()

    def rank(self, names: list[str], reports: Reports, pending: PendingRequest | None) -> list[str]:
        self._backlogs.report({name: encoder_report(stats) for name, stats in reports.items()})
        return rank_by(names, self._backlogs.work, self._turn_of(pending))

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        super().on_request_routed(pending_request, replica_id, result)
        self._backlogs.sent(replica_id.unique_id, len(_items_of(pending_request)))


class ContentAffinityRouter(LeastWorkRouter):
    """Prefers replicas by affinity while the first choice has no more work than `spill_work`, else as LeastWork.

    A replica that has as many requests as it may is passed over for the next.
    """

    def initialize_state(self, **settings: Any) -> None:
        """Called by Serve with `SPILL_WORK`, in patches as `EncoderReport.pending_work`."""
        super().initialize_state()
        self._spill_work = float(settings[SPILL_WORK])

    def rank(self, names: list[str], reports: Reports, pending: PendingRequest | None) -> list[str]:
        by_work = super().rank(names, reports, pending)
        items = _items_of(pending)
        if not items:
            return by_work
        preferred = rank_by_affinity(content_digest(items), names)
        if preferred and self._backlogs.work(preferred[0]) > self._spill_work:
            return by_work
        return preferred


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


def _items_of(pending: PendingRequest | None) -> Sequence[MediaItem]:
    """The items of an encode call; none for calls about no content, such as statistics."""
    if pending is not None and pending.args and isinstance(pending.args[0], EncodeRequest):
        return pending.args[0].items
    return ()
