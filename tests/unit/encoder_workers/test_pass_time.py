"""The size of a pass follows what passes take."""

from __future__ import annotations

import math

import pytest

from encoder_workers.pass_time import PassTime


def test_before_the_first_pass_nothing_is_too_much() -> None:
    assert PassTime(0.5).room == math.inf


def test_a_pass_holds_what_takes_its_time() -> None:
    passes = PassTime(0.5)
    passes.ended(work=100, seconds=0.1)
    assert passes.room == pytest.approx(500)


def test_one_slow_pass_is_not_believed_at_once_but_many_are() -> None:
    passes = PassTime(0.5)
    passes.ended(work=100, seconds=0.1)
    passes.ended(work=100, seconds=0.2)
    assert 300 < passes.room < 500
    for _ in range(20):
        passes.ended(work=100, seconds=0.2)
    assert passes.room == pytest.approx(250, rel=0.01)
