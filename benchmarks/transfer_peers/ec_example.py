"""What vLLM's `ECExampleConnector` does: one safetensors file per embedding."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from benchmarks.transfer_peers.base import Consumer, Producer, touch
from transfer import tensor_to_buffer


class FileProducer(Producer):
    """Saves as `ECExampleConnector.save_caches` of vLLM 0.30 does: one safetensors file per embedding."""

    def __init__(self, tensor: torch.Tensor, folder: Path) -> None:
        self._tensor, self._folder = tensor, folder
        self._item = folder

    def prepare(self) -> Path:
        self._item = self._folder / uuid.uuid4().hex
        _file_of(self._item)  # as its producer's scheduler has asked for it before
        return self._item

    def publish(self) -> None:
        safetensors.torch.save_file({"ec_cache": self._tensor.detach().cpu()}, _file_of(self._item))


class FileConsumer(Consumer):
    """Loads as `ECExampleConnector.start_load_caches` does; the scheduler's look at the file is included."""

    has_fetch = True

    def __init__(self, address: Any, num_bytes: int) -> None:
        super().__init__(address, num_bytes)
        self._item = Path()

    def expect(self, item: Path) -> None:
        self._item = item
        assert os.path.exists(_file_of(item))  # noqa: PTH110

    def collect(self) -> memoryview:
        tensor: torch.Tensor = safetensors.torch.load_file(_file_of(self._item), device="cpu")["ec_cache"]
        memory = tensor_to_buffer(tensor)
        touch(memory)  # the file is only mapped so far
        return memory

    def done(self, item: Path) -> None:
        os.remove(_file_of(item))  # noqa: PTH107
        item.rmdir()


def _file_of(item: Path) -> str:
    """As the connector does it, by `os`: it makes sure of the item's folder whenever it needs the name of its file."""
    os.makedirs(item, exist_ok=True)  # noqa: PTH103
    return os.path.join(item, "encoder_cache.safetensors")  # noqa: PTH118
