"""Messages and buffers between an encoder and one of its ranks, over a Unix socket that only those two have."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from encoder_workers.ranks.messages import RankMessage, decode, encode

_HEADER = struct.Struct("<I")
_MAX_BUFFERS = 2


class LinkClosed(ConnectionError):
    """The other end is gone."""


@dataclass(frozen=True)
class SharedBuffer:
    """Memory without a name that goes, as a file descriptor, to other processes; freed when the last one lets go."""

    descriptor: int
    memory: mmap.mmap

    @staticmethod
    def create(num_bytes: int, name: str) -> SharedBuffer:
        """Zeros. OSError when there is no memory for them."""
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, max(num_bytes, 1))
            return SharedBuffer.open(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    @staticmethod
    def open(descriptor: int) -> SharedBuffer:
        """The buffer that another process made."""
        return SharedBuffer(descriptor, mmap.mmap(descriptor, 0))

    def tensor(self, dtype: torch.dtype, shape: Sequence[int], offset: int) -> torch.Tensor:
        """A tensor on this memory, which it keeps."""
        count = 1
        for size in shape:
            count *= size
        if not count:
            return torch.empty(*shape, dtype=dtype)
        return torch.frombuffer(self.memory, dtype=dtype, count=count, offset=offset).view(*shape)

    def close_descriptor(self) -> None:
        """Tensors stay; the buffer can be sent no more."""
        os.close(self.descriptor)


class Link:
    """One end. Each direction has one sender and one receiver."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: RankMessage, buffers: Sequence[SharedBuffer] = ()) -> None:
        """Raises LinkClosed, or TimeoutError when the other end takes nothing."""
        body = encode(message)
        try:
            socket.send_fds(self._socket, [_HEADER.pack(len(body))], [buffer.descriptor for buffer in buffers])
            self._socket.sendall(body)
        except ConnectionError as error:
            raise LinkClosed("the other end is gone") from error

    def receive(self) -> tuple[RankMessage, list[SharedBuffer]]:
        """Wait for the next message, as long as the socket's time limit allows. Raises LinkClosed, TimeoutError."""
        try:
            header, descriptors, _, _ = socket.recv_fds(self._socket, _HEADER.size, _MAX_BUFFERS)
            header += self._exactly(_HEADER.size - len(header)) if header else b""
            if not header:
                raise LinkClosed("the other end is gone")
            (size,) = _HEADER.unpack(header)
            message = decode(self._exactly(size))
        except ConnectionError as error:
            raise LinkClosed("the other end is gone") from error
        return message, [SharedBuffer.open(descriptor) for descriptor in descriptors]

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._socket.recv(size - len(parts))
            if not part:
                raise LinkClosed("the other end is gone")
            parts += part
        return bytes(parts)
