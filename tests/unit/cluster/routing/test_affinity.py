"""Content affinity spreads distinct contents, keeps equal ones together, and moves few when a replica goes."""

from __future__ import annotations

from collections import Counter

from cluster.routing.affinity import (
    SPILL_WORK,
    ContentAffinityRouter,
    LeastWorkRouter,
    content_digest,
    rank_by_affinity,
)
from tests.unit.cluster.routing.routing_fleet import Fleet, encode_of
from transfer import MediaItem

_NAMES = ["a", "b", "c", "d"]
_CONTENTS = [number.to_bytes(4, "big") for number in range(4000)]


def test_even_spread() -> None:
    counts = Counter(rank_by_affinity(content, _NAMES)[0] for content in _CONTENTS)
    assert min(counts[name] for name in _NAMES) > 900


def test_the_order_of_replicas_does_not_matter() -> None:
    for content in _CONTENTS[:100]:
        assert rank_by_affinity(content, _NAMES) == rank_by_affinity(content, _NAMES[::-1])


def test_only_the_contents_of_a_lost_replica_move() -> None:
    for content in _CONTENTS[:500]:
        ranked = rank_by_affinity(content, _NAMES)
        assert rank_by_affinity(content, [name for name in _NAMES if name != ranked[0]]) == ranked[1:]
        kept = [name for name in _NAMES if name != ranked[-1]]
        assert rank_by_affinity(content, kept)[0] == ranked[0]


def test_digest_tells_contents_apart() -> None:
    large = b"x" * 300_000
    digests = {
        content_digest([MediaItem("image", data=large)]),
        content_digest([MediaItem("image", data=large + b"y")]),
        content_digest([MediaItem("image", data=b"y" + large[1:])]),
        content_digest([MediaItem("image", url="http://example.org/1.png")]),
        content_digest([MediaItem("image", url="http://example.org/2.png")]),
    }
    assert len(digests) == 5
    assert content_digest([MediaItem("image", data=large)]) == content_digest([MediaItem("image", data=large)])


class _Encoders:
    """Encoders that work on what they were sent, so much a second, and report once a second."""

    def __init__(self, fleet: Fleet, work_per_s: float) -> None:
        self.fleet = fleet
        self.pending = dict.fromkeys(fleet.names, 0.0)
        self.num_taken = dict.fromkeys(fleet.names, 0)
        self.total = dict.fromkeys(fleet.names, 0.0)
        self.peak = 0.0
        self._work_per_s = work_per_s

    def take(self, content: bytes, work: float) -> str:
        name = self.fleet.send(encode_of(content), lambda name: 0.01)
        self.pending[name] += work
        self.total[name] += work
        self.num_taken[name] += 1
        self.peak = max(self.peak, *self.pending.values())
        return name

    def second(self) -> None:
        self.fleet.advance(1.0)
        for name in self.fleet.names:
            self.pending[name] = max(0.0, self.pending[name] - self._work_per_s)
            mean = self.total[name] / self.num_taken[name] if self.num_taken[name] else 0.0
            self.fleet.reports[name] = {
                "pending_work": self.pending[name],
                "work_per_item": mean,
                "num_taken": self.num_taken[name],
            }


def test_repeats_go_where_they_went_while_there_is_room() -> None:
    encoders = _Encoders(Fleet(ContentAffinityRouter, _NAMES, **{SPILL_WORK: 10_000}), work_per_s=5000)
    homes: dict[bytes, set[str]] = {}
    for number in range(120):
        content = _CONTENTS[number % 12]
        homes.setdefault(content, set()).add(encoders.take(content, 1000))
        if number % 4 == 3:
            encoders.second()
    assert all(len(found) == 1 for found in homes.values())


def test_what_everybody_asks_for_spills_over_before_its_home_is_buried() -> None:
    """A burst of contents that all prefer one replica, without a report in between: the others take their part."""
    favourites = [content for content in _CONTENTS if rank_by_affinity(content, _NAMES)[0] == "a"][:80]
    encoders = _Encoders(Fleet(ContentAffinityRouter, _NAMES, **{SPILL_WORK: 10_000}), work_per_s=5000)
    encoders.take(favourites[0], 1000)
    encoders.second()  # so that all know what an item costs
    for name in _NAMES:
        encoders.fleet.reports[name] = {"pending_work": 0.0, "work_per_item": 1000.0, "num_taken": 1}
    for content in favourites:
        encoders.take(content, 1000)
    assert encoders.num_taken["a"] >= 11
    assert encoders.peak <= 24_000  # 80,000 in all


def test_a_replica_that_others_have_buried_is_spared() -> None:
    encoders = _Encoders(Fleet(ContentAffinityRouter, _NAMES, **{SPILL_WORK: 10_000}), work_per_s=5000)
    encoders.fleet.reports["a"] = {"pending_work": 50_000.0, "work_per_item": 1000.0, "num_taken": 50}
    assert all(encoders.take(content, 1000) != "a" for content in _CONTENTS[:40])


def test_least_work_evens_out_large_and_small() -> None:
    encoders = _Encoders(Fleet(LeastWorkRouter, _NAMES), work_per_s=0)
    for number in range(400):
        encoders.take(_CONTENTS[number], 10_000 if number % 9 == 0 else 500)
        if number % 2:
            encoders.second()
    assert max(encoders.total.values()) - min(encoders.total.values()) <= 20_000
