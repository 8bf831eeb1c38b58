"""What an encoder has promised: the bytes of all leases' embeddings, before and after they are made, and to whom."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Promise:
    """One lease's part: leases of one item share its memory, and `holder` names who the lease is for, if anybody."""

    item_key: str
    num_bytes: int
    holder: str = ""


@dataclass(slots=True)
class Promises:
    """The sum of the promises that are kept now. Not thread-safe: the owner locks."""

    num_bytes: int = 0
    _num_of_item: Counter[str] = field(default_factory=Counter)
    _bytes_of_item: dict[str, int] = field(default_factory=dict)
    _num_of_holder: Counter[str] = field(default_factory=Counter)

    def fits(self, promise: Promise, max_bytes: int) -> bool:
        """Whether it leaves the sum within `max_bytes`, or may exceed it.

        It may if nothing else is promised, or if its holder has been promised something already: two holders that each
        wait for what the other one keeps would wait for ever.
        """
        if not self.num_bytes or promise.item_key in self._num_of_item or promise.holder in self._num_of_holder:
            return True
        return self.num_bytes + promise.num_bytes <= max_bytes

    def add(self, promise: Promise) -> None:
        """Keep it from now on."""
        if promise.item_key not in self._num_of_item:
            self._bytes_of_item[promise.item_key] = promise.num_bytes
            self.num_bytes += promise.num_bytes
        self._num_of_item[promise.item_key] += 1
        if promise.holder:
            self._num_of_holder[promise.holder] += 1

    def remove(self, promise: Promise) -> None:
        """Keep it no longer; once for each `add`."""
        if _take_one(self._num_of_item, promise.item_key):
            self.num_bytes -= self._bytes_of_item.pop(promise.item_key)
        if promise.holder:
            _take_one(self._num_of_holder, promise.holder)

    def check_integrity(self, promises: Iterable[Promise]) -> None:
        """Assert that these, and no others, are what is kept."""
        kept = list(promises)
        assert self._num_of_item == Counter(promise.item_key for promise in kept)
        assert self._num_of_holder == Counter(promise.holder for promise in kept if promise.holder)
        assert self._bytes_of_item.keys() == self._num_of_item.keys()
        assert self.num_bytes == sum(self._bytes_of_item.values())


def _take_one(counts: Counter[str], key: str) -> bool:
    """Whether it was the last."""
    counts[key] -= 1
    if counts[key]:
        return False
    del counts[key]
    return True
