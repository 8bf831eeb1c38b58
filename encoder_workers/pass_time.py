"""How much work a pass may hold so that it takes about as long as it should, by what the passes before it took."""

from __future__ import annotations

import math

_NEWEST = 0.3
"""Weight of the newest pass: what a device shares its time with comes and goes."""


class PassTime:
    """Learns the seconds per unit of work from passes.

    Whoever comes while a pass runs waits for its end, and an item that is done waits for the others of its pass; larger
    ones pay as long as they use the device better, which a CPU does with one picture already.
    """

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self._seconds_per_work: float | None = None

    @property
    def room(self) -> float:
        """The work that takes the target's time; before the first pass nothing is known to be too much."""
        return math.inf if self._seconds_per_work is None else self._target_s / self._seconds_per_work

    def ended(self, work: float, seconds: float) -> None:
        """A pass with so much work took so long."""
        newest = seconds / work
        known = newest if self._seconds_per_work is None else self._seconds_per_work
        self._seconds_per_work = (1 - _NEWEST) * known + _NEWEST * newest
