"""What vLLM's `ECExampleConnector` does: one safetensors file per embedding."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from benchmarks.transfer_peers.base import Consumer, Producer


class FileProducer(Producer):
    """Saves as `ECExampleConnector.save_caches` of vLLM 0.30 does: one safetensors file per embedding."""

    def __init__(self, tensor: torch.Tensor, folder: Path) -> None:
        self._tensor, self._folder = tensor, folder
        self._file = folder

    def prepare(self) -> Path:
        folder = self._folder / uuid.uuid4().hex
        folder.mkdir()
        self._file = folder / "encoder_cache.safetensors"
        return self._file

    def publish(self) -> None:
        safetensors.torch.save_file({"ec_cache": self._tensor.detach().cpu()}, self._file)


class FileConsumer(Consumer):
    """Loads as `ECExampleConnector.start_load_caches` does; the scheduler's look at the file is included."""

    has_fetch = True

    def __init__(self, address: Any, num_bytes: int) -> None:
        super().__init__(address, num_bytes)
        self._file = Path()

    def expect(self, item: Path) -> None:
        self._file = item

    def collect(self) -> torch.Tensor:
        assert self._file.exists()
        tensor: torch.Tensor = safetensors.torch.load_file(self._file, device="cpu")["ec_cache"]
        # The file is only mapped so far: having it includes that every page of it is there.
        tensor.view(torch.uint8).view(-1)[::4096].sum()
        return tensor

    def done(self, item: Path) -> None:
        item.unlink()
        item.parent.rmdir()
