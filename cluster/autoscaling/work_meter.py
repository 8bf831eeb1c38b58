"""How much a replica has computed and how long it was at it, from pieces of work that may overlap."""

from __future__ import annotations

import threading


class WorkMeter:
    """Totals since it was made. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = 0
        self._busy_s = 0.0
        self._last_end = 0.0

    def add(self, num_tokens: int, begun: float, ended: float) -> None:
        """A piece of work, told in the order in which they end; time that two share counts once.

        Args:
            begun, ended: seconds of one clock.
        """
        with self._lock:
            self._done += num_tokens
            self._busy_s += max(0.0, ended - max(begun, self._last_end))
            self._last_end = max(self._last_end, ended)

    def totals(self) -> tuple[int, float]:
        """Tokens computed, and seconds busy with them."""
        with self._lock:
            return self._done, self._busy_s
