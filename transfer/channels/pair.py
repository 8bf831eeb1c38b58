"""Two-rank groups of torch.distributed, one per pair of processes, apart from any group that either of them has.

The encoder is rank 0 and hosts the store at which the two meet; the prefill worker is rank 1. The code is the same for
gloo (CPU), nccl (CUDA) and hccl (Ascend): send and recv of bytes in the order in which they were asked for. Every wait
has a deadline, after which the group is broken and both ends drop it.

Nothing here is encrypted or authenticated: it is for a fabric that only the cluster reaches.
"""

import contextlib
import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed

# torch leaves the classes of its stores and groups untyped.
dist: Any = torch.distributed

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
"""torch.distributed's backend by kind of device."""
ALIGNMENT = 2 * 1024 * 1024
"""Of the memory that is sent from and received into: what Ascend's links can register."""
_MEET_S = 10.0
_TRANSFER_S = 30.0


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the two ends of a pair find each other; travels as a segment's `region`."""

    host: str
    port: int
    backend: str
    nonce: str

    def to_region(self) -> str:
        """As text."""
        return f"{self.backend}:{self.nonce}:{self.port}:{self.host}"

    @classmethod
    def from_region(cls, region: str) -> "Meeting":
        """Inverse; ValueError for anything else."""
        backend, nonce, port, host = region.split(":", 3)
        if backend not in BACKENDS.values() or not 0 < int(port) < 65_536 or not nonce.isalnum() or not host:
            raise ValueError(f"{region!r} is no place to meet")
        return cls(host, int(port), backend, nonce)


class Pair:
    """One end of a group, for one thread; `close` is idempotent. RuntimeError when the other end does not answer."""

    def __init__(self, meeting: Meeting, rank: int, store: Any, device: torch.device) -> None:
        """Meet the other end, for at most ten seconds."""
        self._peer = 1 - rank
        self._memory = AlignedMemory(device)
        prefixed = dist.PrefixStore(meeting.nonce, store)
        prefixed.set_timeout(timedelta(seconds=_MEET_S))
        self._group = _make_group(meeting, prefixed, rank)

    def send(self, data: memoryview, tag: int) -> None:
        """Bytes of the host to the other end."""
        staged = self._memory.take(data.nbytes)
        if staged.device.type == "cpu":
            np.copyto(staged.numpy(), np.frombuffer(data, np.uint8))
        else:
            staged.copy_(torch.frombuffer(bytearray(data) if data.readonly else data, dtype=torch.uint8))
        self._group.send([staged], self._peer, tag).wait(timedelta(seconds=_TRANSFER_S))

    def receive(self, num_bytes: int, tag: int) -> torch.Tensor:
        """Bytes of the other end, in memory that the next call uses again."""
        staged = self._memory.take(num_bytes)
        self._group.recv([staged], self._peer, tag).wait(timedelta(seconds=_TRANSFER_S))
        return staged

    def close(self) -> None:
        """Leave the group; what the other end still waits for fails there."""
        if hasattr(self._group, "abort"):
            with contextlib.suppress(RuntimeError):
                self._group.abort()
        self._group = None


class AlignedMemory:
    """Memory of one device that grows when more is needed and always begins at a multiple of 2 MiB."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)

    def take(self, num_bytes: int) -> torch.Tensor:
        """The first bytes of it; what was taken before is the same memory."""
        if self._memory.numel() < num_bytes:
            size = -(-num_bytes // ALIGNMENT) * ALIGNMENT
            whole = torch.empty(size + ALIGNMENT, dtype=torch.uint8, device=self._device)
            start = -whole.data_ptr() % ALIGNMENT
            self._memory = whole[start : start + size]
        return self._memory[:num_bytes]


def open_store(host: str) -> tuple[Any, int]:
    """A store of this process that the other end of a pair can reach, and its port; returns at once."""
    store = dist.TCPStore(
        host, 0, None, is_master=True, timeout=timedelta(seconds=_MEET_S), wait_for_workers=False, use_libuv=True
    )
    return store, store.port


def join_store(meeting: Meeting) -> Any:
    """The other end's store. Raises torch.distributed.DistError (a RuntimeError) when it is not there."""
    return dist.TCPStore(
        meeting.host,
        meeting.port,
        None,
        is_master=False,
        timeout=timedelta(seconds=_MEET_S),
        wait_for_workers=False,
        use_libuv=True,
    )


def new_meeting(host: str, port: int, backend: str) -> Meeting:
    """One that no other pair has."""
    return Meeting(host, port, backend, secrets.token_hex(8))


def _make_group(meeting: Meeting, store: Any, rank: int) -> Any:
    timeout = timedelta(seconds=_TRANSFER_S)
    if meeting.backend == "gloo":
        gloo = dist.ProcessGroupGloo
        options = gloo._Options()
        options._timeout = timeout
        # The address that was agreed on, not whatever the host's name resolves to.
        options._devices = [gloo.create_device(hostname=meeting.host if rank == 0 else _own_address(meeting.host))]
        return gloo(store, rank, 2, options)
    if meeting.backend == "nccl":
        nccl_options = dist.ProcessGroupNCCL.Options()
        nccl_options._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, 2, nccl_options)
    # torch_npu registers its backend when it is imported, which npu_kernels has done for a device of its kind.
    plugin = dist.Backend._plugins["HCCL"]
    asked = dist.distributed_c10d._DistributedBackendOptions()
    asked.store, asked.group_rank, asked.group_size, asked.timeout = store, rank, 2, timeout
    asked.group_id, asked.global_ranks_in_group = meeting.nonce, [0, 1]
    return plugin.creator_fn(asked, None)


def _own_address(other: str) -> str:
    """This host's address on the way to `other`."""
    family = socket.AF_INET6 if ":" in other else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # sends nothing
        address: str = probe.getsockname()[0]
        return address
