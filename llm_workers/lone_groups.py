"""Gives all of an engine's groups of one rank the same event loop.

vLLM makes a dozen process groups in an engine of one process. PyTorch gives each that gloo is behind a thread of its
own, which looks a hundred times a second whether a peer has sent something, and no such group has peers. On a machine
whose cores compute, two engines stopped an encoder's threads 2,600 times a second in the middle of an operation.
"""

from __future__ import annotations

import functools
from typing import Any

from torch.distributed import distributed_c10d


def install() -> None:
    """For the groups that this process makes from now on. Idempotent."""
    inner: Any = distributed_c10d.ProcessGroupGloo
    if "_device" in vars(inner):
        return

    class ProcessGroupGloo(inner):  # type: ignore[misc]
        """PyTorch's own, which a group of one rank makes with a device that others have, too."""

        _device = staticmethod(functools.cache(inner.create_default_device))

        def __init__(self, store: Any, rank: int, size: int, **options: Any) -> None:
            if size == 1 and options.keys() == {"timeout"}:
                shared = inner._Options()
                shared._timeout = options["timeout"]
                shared._devices = [self._device()]
                super().__init__(store, rank, size, shared)
            else:
                super().__init__(store, rank, size, **options)

    distributed_c10d.ProcessGroupGloo = ProcessGroupGloo  # type: ignore[misc,assignment]
