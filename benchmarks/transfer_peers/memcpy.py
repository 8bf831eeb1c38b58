"""One copy within a process: the upper bound of anything that copies once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.transfer_peers.base import Consumer, Producer
from transfer import tensor_to_buffer


class MemcpyProducer(Producer):
    """Nothing to give: the consumer copies within its own memory."""

    def __init__(self, tensor: torch.Tensor, folder: Path) -> None:
        self.address = tensor

    def publish(self) -> None:
        """Nothing."""


class MemcpyConsumer(Consumer):
    """The upper bound of anything that copies once."""

    has_handover = False

    def __init__(self, address: torch.Tensor, num_bytes: int) -> None:
        super().__init__(address, num_bytes)
        self._source = address.clone()
        self._target = torch.zeros_like(self._source)

    def collect(self) -> memoryview:
        np.copyto(self._target.numpy(), self._source.numpy())
        return tensor_to_buffer(self._target)
