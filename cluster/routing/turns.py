"""Ranks replicas by what they cost, equal ones in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def rank_by(names: list[str], cost: Callable[[str], Any], turn: int) -> list[str]:
    """The names by their cost, least first; of equal ones the next in turn first."""
    start = turn % len(names) if names else 0
    return sorted(names[start:] + names[:start], key=cost)
