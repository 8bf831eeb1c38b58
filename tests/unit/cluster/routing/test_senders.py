"""A replica's account of its callers: what is under way by sender, and nothing of what has ended."""

from __future__ import annotations

import contextlib

import pytest

from cluster.routing.senders import SenderAccount, UncountedTokens
from llm_workers.observer import NoObserver


def test_costs_are_kept_apart_by_sender_and_go_with_their_calls() -> None:
    account = SenderAccount()
    with contextlib.ExitStack() as first:
        first.enter_context(account.running("a", 10.0))
        with account.running("b", 5.0), account.running("a", 2.0):
            assert account.costs() == {"a": 12.0, "b": 5.0}
        assert account.costs() == {"a": 10.0}
    assert account.costs() == {}


def test_a_call_that_fails_leaves_nothing() -> None:
    account = SenderAccount()
    with pytest.raises(ValueError, match="x"), account.running("a", 10.0):
        raise ValueError("x")
    assert account.costs() == {}


def test_a_cache_is_compared_with_what_was_counted_at_its_step() -> None:
    """Not with what is left when somebody asks, a moment after the calls in it ended."""
    account = SenderAccount()
    uncounted = UncountedTokens(account, NoObserver())
    with account.running("a", 400.0):
        uncounted.step_ended(1)
        assert uncounted.of(350.0) == 0.0
        assert uncounted.of(3000.0) == 2600.0
    assert account.total == 0.0
    assert uncounted.of(350.0) == 0.0
