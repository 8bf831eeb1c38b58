"""Processes that train one network together: each takes a part of every batch, and gradients are averaged.

Two processes of one thread each waste less of two cores than one process of two threads, whose threads wait for each
other in every one of thousands of small operations.
"""

import datetime
import os
import signal
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

_TIMEOUT = datetime.timedelta(seconds=600)
_JOIN_S = 30.0


class Team:
    """One process's place among all; every method is a step that all of them take."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    @property
    def leads(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    def average_gradients(self, *modules: nn.Module) -> None:
        """Replace every gradient by the mean of all processes'; parameters without one must be the same in all."""
        if self.size == 1:
            return
        gradients = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
        for gradient, total in zip(gradients, self.sum(gradients), strict=True):
            torch.div(total, self.size, out=gradient)

    def sum(self, parts: list[Tensor]) -> list[Tensor]:
        """Return the sums over all processes of ``parts``, all of one type, in one exchange."""
        if self.size == 1:
            return parts
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        pieces = flat.split([part.numel() for part in parts])
        return [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]

    def agree(self, wish: bool) -> bool:
        """Return what the leader wishes."""
        if self.size == 1:
            return wish
        said = torch.tensor([int(wish)])
        dist.broadcast(said, 0)
        return bool(said.item())

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of all processes' ``values``."""
        return self.sum([values])[0] / self.size


def run_as_team(size: int, work: Callable[[Team], None]) -> None:
    """Run ``work`` in ``size`` processes, of which this is the leader; the others end with it.

    ``work`` must be picklable. Raises what it raises here.
    """
    if size == 1:
        work(Team(0, 1))
        return
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        context = get_context("spawn")
        others = [context.Process(target=_follow, args=(rank, size, meeting, work)) for rank in range(1, size)]
        for other in others:
            other.start()
        try:
            _join(0, size, meeting)
            work(Team(0, size))
            dist.destroy_process_group()
        finally:
            _end(others)
            torch.set_num_threads(num_threads)


def _follow(rank: int, size: int, meeting: Path, work: Callable[[Team], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # what reaches all: the leader says when to stop
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    _join(rank, size, meeting)
    work(Team(rank, size))
    dist.destroy_process_group()


def _join(rank: int, size: int, meeting: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=_TIMEOUT)


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.join(_JOIN_S)
        process.kill()
        process.join()
