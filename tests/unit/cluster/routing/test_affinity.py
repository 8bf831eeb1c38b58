"""Content affinity spreads distinct contents, keeps equal ones together, and moves few when a replica goes."""

from __future__ import annotations

from collections import Counter

from cluster.routing.affinity import content_digest, rank_by_affinity
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
