"""The end of a request's time, fixed at its arrival and asked for what remains."""

from __future__ import annotations

import time

from transfer import DeadlineExceeded


class Deadline:
    """`timeout_s` from now."""

    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Seconds left, always positive.

        Raises:
            DeadlineExceeded: none is left.
        """
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise DeadlineExceeded("the request's time is over")
        return remaining
