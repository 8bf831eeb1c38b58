"""Guards, for a minute of random kills: wrong bytes, fetches without an outcome, leaks."""

from benchmarks.soak import Soak

SECONDS = 60.0


def test_nothing_is_wrong_or_left_after_random_kills() -> None:
    figures = Soak(seed=7).run(SECONDS)
    assert figures.faults == []
    assert figures.num_kills > 0
    assert figures.outcomes["ok"] > 0
