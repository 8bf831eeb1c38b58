"""Log lines that a peer can provoke, limited to one per interval so that it cannot fill the disk."""

import logging
import time
from collections.abc import Callable


class LimitedLog:
    """Warns at most once every `interval_s` and says how many lines it left out."""

    def __init__(
        self, logger: logging.Logger, interval_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._clock = clock
        self._next_time = clock()
        self._num_suppressed = 0

    def warning(self, message: str) -> None:
        """Log now, or count it when another line was logged less than the interval ago."""
        now = self._clock()
        if now < self._next_time:
            self._num_suppressed += 1
            return
        self._logger.warning("%s (%d similar lines left out)", message, self._num_suppressed)
        self._next_time, self._num_suppressed = now + self._interval_s, 0
