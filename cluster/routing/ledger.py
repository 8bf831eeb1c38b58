"""What replicas have under way, in the cost that a policy counts: exactly what is ours, by report what is others'.

A router sees its own calls begin and end. Other ingress replicas have routers of their own, whose calls show in the
replicas' reports, a second late.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass
class _Load:
    ours: float = 0.0
    others: float = 0.0


class Ledger:
    """The account of one router. A call that is placed again, elsewhere, has left where it was."""

    def __init__(self) -> None:
        self._loads: dict[str, _Load] = {}
        self._calls: dict[str, tuple[str, float]] = {}

    def place(self, call_id: str, name: str, cost: float) -> None:
        """A call is at this replica."""
        self.end(call_id)
        self._calls[call_id] = name, cost
        self._load(name).ours += cost

    def end(self, call_id: str) -> None:
        """A call has ended, however; one that is not known is none of ours."""
        placed = self._calls.pop(call_id, None)
        if placed is not None:
            name, cost = placed
            self._load(name).ours -= cost

    def report(self, others: Mapping[str, float]) -> None:
        """What the replicas said last of calls that are not ours."""
        for name, cost in others.items():
            self._load(name).others = cost

    def load(self, name: str) -> float:
        """What is under way at this replica."""
        load = self._load(name)
        return load.ours + load.others

    def keep(self, names: Collection[str]) -> None:
        """Forget the replicas that are gone and have no call of ours."""
        held = {name for name, _ in self._calls.values()}
        for name in self._loads.keys() - set(names) - held:
            del self._loads[name]

    def _load(self, name: str) -> _Load:
        return self._loads.setdefault(name, _Load())
