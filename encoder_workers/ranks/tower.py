"""A tower that runs on a group of ranks, and starts a new group after it has lost one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from encoder_workers.checkpoint import CheckpointError
from encoder_workers.media import Prepared
from encoder_workers.ranks.group import RankGroup, RankLost
from encoder_workers.ranks.messages import LaunchRank
from npu_kernels import KernelMismatch
from transfer.errors import EncodeFailed, EncoderLost, OutOfMemory

logger = logging.getLogger(__name__)

TIMEOUT_S = 600.0
"""Longest start of a group, and longest pass."""
_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (CheckpointError, KernelMismatch, ValueError, OutOfMemory)
}


class GroupTower:
    """Implements encoder_workers.interface.Tower. Embeddings are on the host, where the ranks put them."""

    def __init__(self, launch: LaunchRank, dtype: torch.dtype) -> None:
        """Raises what a rank raised, or RankLost when one ended without a word."""
        self._launch = launch
        self._dtype = dtype
        try:
            self._group = RankGroup(launch, dtype)
        except RankLost as error:
            if error.error in _ERRORS:
                raise _ERRORS[error.error](str(error)) from error
            raise
        self.width = self._group.width
        self.layout = self._group.layout
        self.row_bytes = self._group.row_bytes
        """Device memory that a row takes in a pass on its rank."""
        self.rows_per_pair = self._group.rows_per_pair
        """What a pair of rows that attend to each other costs, in rows."""
        self.free_bytes = self._group.free_bytes
        """Of the rank's device that had least, when its weights were loaded."""
        self._restart_failure: str | None = None
        self._closed = False

    @property
    def process_ids(self) -> list[int]:
        """Of the ranks, in order; none while the group is not running."""
        return self._group.process_ids

    def forward(self, batch: Sequence[Prepared]) -> list[torch.Tensor]:
        """One pass; with a group of its own when the last one is lost.

        Raises:
            EncoderLost: a rank ended, was late, or could not be started again; the same items may succeed later.
            OutOfMemory: a rank's device has no room for this batch.
            EncodeFailed: a rank failed on this batch.
        """
        if self._closed:
            raise ValueError("the encoder is closed")
        try:
            if not self._group.is_open:
                self._restart()
            return self._group.run(batch)
        except RankLost as error:
            if error.error is None:
                raise EncoderLost(str(error)) from error
            if error.error == OutOfMemory.__name__:
                raise OutOfMemory(str(error)) from error
            raise EncodeFailed(str(error)) from error

    def check_health(self) -> None:
        """Raises EncoderLost when the group is lost and could not be started again."""
        if self._restart_failure is not None:
            raise EncoderLost(self._restart_failure)

    def close(self) -> None:
        """End the ranks. Idempotent."""
        self._closed = True
        self._group.close()

    def _restart(self) -> None:
        logger.warning("an encoder's group of %d ranks is lost: starting it again", self._launch.num_ranks)
        try:
            self._group = RankGroup(self._launch, self._dtype)
        except RankLost as error:
            self._restart_failure = f"the encoder's ranks could not be started again: {error}"
            raise RankLost(self._restart_failure) from error
        self._restart_failure = None


def load_group_tower(
    model: str | Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    ranks: int,
    ops: str | Mapping[str, str],
    timeout_s: float = TIMEOUT_S,
) -> GroupTower:
    """Start `ranks` processes on this machine: devices 0 to ranks - 1 of the kind, or as many on the CPU.

    Each computes with as many threads as this process does. Raises ValueError when there are too few devices, and what
    load_encoder raises.
    """
    if device.index is not None:
        raise ValueError(f"an encoder over {ranks} ranks takes devices 0 to {ranks - 1}: give {device.type!r} alone")
    if device.type != "cpu":
        available = torch.get_device_module(device.type).device_count()
        if available < ranks:
            raise ValueError(f"{ranks} ranks need as many {device.type} devices; this process has {available}")
    launch = LaunchRank(
        rank=0,
        num_ranks=ranks,
        model=str(model),
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        ops=ops if isinstance(ops, str) else tuple(ops.items()),
        num_threads=torch.get_num_threads(),
        rendezvous="",
        timeout_s=timeout_s,
    )
    return GroupTower(launch, dtype)
