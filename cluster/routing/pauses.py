"""Which replicas are left alone for a while because calls could not reach them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class FailurePauses:
    """A replica that fails is paused, twice as long with each failure in a row; a call that it takes ends that."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_failures: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def failed(self, name: str) -> None:
        """A call did not reach this replica. Calls that fail within a pause are of the same failure."""
        if self.is_paused(name):
            return
        number = self._num_failures[name] = self._num_failures.get(name, 0) + 1
        self._until[name] = self._clock() + min(_FIRST_PAUSE_S * 2 ** (number - 1), _LONGEST_PAUSE_S)

    def took(self, name: str) -> None:
        """This replica took a call."""
        self._num_failures.pop(name, None)
        self._until.pop(name, None)

    def is_paused(self, name: str) -> bool:
        """Whether it is to be asked only when nobody else has room."""
        return self._clock() < self._until.get(name, 0.0)

    def keep(self, names: Collection[str]) -> None:
        """Forget the replicas that are gone."""
        for name in self._num_failures.keys() - set(names):
            self.took(name)
