"""The items that a worker is encoding, by content: later requests for the same content wait for the same encoding."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from transfer import HostEmbedding


@dataclass(slots=True)
class Encoding:
    """One item being encoded, the transfers that wait for it, and what it costs (`Encoder.work`)."""

    key: str
    transfers: set[str]
    work: float


class Encodings:
    """The table. Thread-safe; whatever is begun is either ended or given up, once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_key: dict[str, Encoding] = {}
        self.total_work = 0.0
        """Of all that were ever begun."""

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def pending_work(self) -> float:
        """Of all that are in the table."""
        with self._lock:
            return sum(encoding.work for encoding in self._by_key.values())

    def begin(
        self, key: str, transfer_id: str, work: float, cached: Callable[[str], HostEmbedding | None]
    ) -> Encoding | HostEmbedding | None:
        """What a transfer of this content needs: an encoding to begin, what is cached, or None where it joined one."""
        with self._lock:
            encoding = self._by_key.get(key)
            if encoding is not None:
                encoding.transfers.add(transfer_id)
                return None
            # Under the lock: an encoding that ends leaves its result in the cache before it leaves the table.
            found = cached(key)
            if found is not None:
                return found
            encoding = self._by_key[key] = Encoding(key, {transfer_id}, work)
            self.total_work += work
            return encoding

    def is_wanted(self, encoding: Encoding, is_live: Callable[[str], bool]) -> bool:
        """Whether a live transfer still waits; an encoding that none wants is given up here, so that none can join."""
        with self._lock:
            if any(is_live(transfer_id) for transfer_id in encoding.transfers):
                return True
            del self._by_key[encoding.key]
            return False

    def end(self, encoding: Encoding) -> set[str]:
        """There is an outcome; the transfers that wait for it."""
        with self._lock:
            del self._by_key[encoding.key]
            return set(encoding.transfers)
