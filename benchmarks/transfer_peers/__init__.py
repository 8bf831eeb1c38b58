"""Both ends of every way that `benchmarks.transfer` measures, by name; each way in a file of its own."""

from __future__ import annotations

import importlib

from benchmarks.transfer_peers.base import NUM_IN_FLIGHT, Consumer, Producer

_FILES = {
    "memcpy": ("memcpy", "Memcpy"),
    "socket": ("raw_socket", "Socket"),
    "zmq": ("ours", "Zmq"),
    "shm": ("ours", "Shm"),
    "shm held": ("ours", "Held"),
    "nixl": ("nixl_read", "Nixl"),
    "ec_example": ("ec_example", "File"),
}
PEERS = tuple(_FILES)


def producer_of(peer: str) -> type[Producer]:
    """The encoder's end."""
    found: type[Producer] = _load(peer, "Producer")
    return found


def consumer_of(peer: str) -> type[Consumer]:
    """The prefill worker's end."""
    found: type[Consumer] = _load(peer, "Consumer")
    return found


def _load(peer: str, end: str) -> type:
    file, prefix = _FILES[peer]
    found: type = getattr(importlib.import_module(f"benchmarks.transfer_peers.{file}"), prefix + end)
    return found


__all__ = ["NUM_IN_FLIGHT", "PEERS", "Consumer", "Producer", "consumer_of", "producer_of"]
