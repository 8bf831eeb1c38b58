"""What both ends of a measured way are: a producer and a consumer, each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

WAIT_S = 60.0
_PAGE_BYTES = 4096
NUM_IN_FLIGHT = 4
"""Most items that are expected at a time."""


class Producer:
    """`address` tells the consumer where; `prepare` names the next item, untimed; `publish` makes it available."""

    address: Any = None

    def __init__(self, tensor: torch.Tensor, folder: Path) -> None:
        """`tensor` is what is given, `folder` a place for files."""

    def prepare(self) -> Any:
        """The name of the next item."""
        return None

    def publish(self) -> None:
        """Give what `prepare` named last."""
        raise NotImplementedError

    def close(self) -> None:
        """Free everything."""


class Consumer:
    """`expect` an item, then `collect` its bytes.

    `parks` when both can come before the item is published, `streams` when several can be expected, which are collected
    in that order, each into memory of its own.
    """

    has_fetch: ClassVar[bool] = True
    has_handover: ClassVar[bool] = True
    parks: ClassVar[bool] = False
    streams: ClassVar[bool] = False

    def __init__(self, address: Any, num_bytes: int) -> None:
        self.address, self.num_bytes = address, num_bytes

    def expect(self, item: Any) -> None:
        """Begin."""

    def collect(self) -> memoryview:
        """The bytes, in memory of this process."""
        raise NotImplementedError

    def done(self, item: Any) -> None:
        """The item is not needed any more."""

    def close(self) -> None:
        """Free everything."""


def touch(memory: memoryview) -> None:
    """Have every page of mapped memory, as having its bytes does."""
    memory[::_PAGE_BYTES].tobytes()
