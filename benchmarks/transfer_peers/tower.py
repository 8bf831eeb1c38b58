"""What computes in the producer's process while embeddings leave it, as an encoder's threads do."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from benchmarks.transfer_peers.base import WAIT_S
from configs.priority import NICENESS, give_way

T = TypeVar("T")


class Tower:
    """Two threads that give way as an encoder's do: one computes passes and gives what comes of them, one beside it."""

    def __init__(self) -> None:
        self._running = threading.Event()
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Compute from now on."""
        self._running.set()
        self._threads = [threading.Thread(target=self._compute, args=(first,), daemon=True) for first in (True, False)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Rest."""
        self._running.clear()
        for thread in self._threads:
            thread.join(WAIT_S)
        self._threads = []

    def after_its_pass(self, call: Callable[[], T]) -> T:
        """The result of `call`, which the computing thread makes between two layers; at once while it rests."""
        if not self._threads:
            return call()
        result: Future[T] = Future()
        self._calls.put(lambda: result.set_result(call()))
        return result.result(WAIT_S)

    def _compute(self, takes_calls: bool) -> None:
        """Layers of a tower's size, one after another."""
        give_way(NICENESS["encoder"])
        hidden, weight = torch.randn(256, 1024), torch.randn(1024, 1024) / 32
        while self._running.is_set():
            hidden = torch.nn.functional.layer_norm(torch.nn.functional.gelu(hidden @ weight), (1024,))
            while takes_calls and not self._calls.empty():
                self._calls.get()()
