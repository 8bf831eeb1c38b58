"""Both ends of every way that `benchmarks.transfer` measures. Each end lives in a process of its own."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch

from transfer import (
    EmbeddingClient,
    EmbeddingRef,
    EmbeddingServer,
    new_transfer_id,
    receive_channels,
    send_channels,
    tensor_to_buffer,
)

FINGERPRINT = "benchmark"
_WAIT_S = 60.0
_HEADROOM = 8


class Producer:
    """`address` tells the consumer where; `prepare` names the next item, untimed; `publish` makes it available."""

    address: Any = None

    def prepare(self) -> Any:
        """The name of the next item."""
        return None

    def publish(self) -> None:
        """Give what `prepare` named last."""
        raise NotImplementedError

    def close(self) -> None:
        """Free everything."""


class Consumer:
    """`expect` an item, then `collect` its tensor; `parks` when both can come before the item is published."""

    has_fetch: ClassVar[bool] = True
    has_handover: ClassVar[bool] = True
    parks: ClassVar[bool] = False

    def __init__(self, address: Any, num_bytes: int) -> None:
        self.address, self.num_bytes = address, num_bytes

    def expect(self, item: Any) -> None:
        """Begin."""

    def collect(self) -> torch.Tensor:
        """The tensor, in memory of this process."""
        raise NotImplementedError

    def done(self, item: Any) -> None:
        """The item is not needed any more."""

    def close(self) -> None:
        """Free everything."""


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

    def collect(self) -> torch.Tensor:
        np.copyto(self._target.numpy(), self._source.numpy())
        return self._target


class SocketProducer(Producer):
    """Sends all bytes for every byte that it is sent."""

    def __init__(self, tensor: torch.Tensor, folder: Path) -> None:
        self._buffer = tensor_to_buffer(tensor)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def publish(self) -> None:
        """Nothing: it is always there."""

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while peer.recv(1):
            peer.sendall(self._buffer)


class SocketConsumer(Consumer):
    """Reads into memory that is already there."""

    has_handover = False

    def __init__(self, address: Any, num_bytes: int) -> None:
        super().__init__(address, num_bytes)
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tensor = torch.zeros(num_bytes // 4)

    def collect(self) -> torch.Tensor:
        view = tensor_to_buffer(self._tensor)
        self._socket.send(b"x")
        received = 0
        while received < self.num_bytes:
            received += self._socket.recv_into(view[received:])
        return self._tensor

    def close(self) -> None:
        self._socket.close()


class ServerProducer(Producer):
    """Our embedding server with one channel."""

    channel: ClassVar[str]

    def __init__(self, tensor: torch.Tensor, folder: Path) -> None:
        self._tensor = tensor
        arena_bytes = max(_HEADROOM * tensor.nbytes, 2**20)
        self._server = EmbeddingServer(FINGERPRINT, None, send_channels([self.channel], arena_bytes))
        self.address = self.channel
        self._transfer_id = ""

    def prepare(self) -> EmbeddingRef:
        self._transfer_id = new_transfer_id()
        num_tokens, width = self._tensor.shape
        self._server.announce(self._transfer_id, "key", num_tokens, width, "float32")
        return EmbeddingRef(
            "key",
            self._transfer_id,
            (self._server.endpoint,),
            num_tokens,
            width,
            "float32",
            self._tensor.nbytes,
            FINGERPRINT,
        )

    def publish(self) -> None:
        shape = (self._tensor.shape[0], self._tensor.shape[1])
        assert self._server.publish(self._transfer_id, tensor_to_buffer(self._tensor), shape, "float32")

    def close(self) -> None:
        self._server.close()


class ZmqProducer(ServerProducer):
    channel = "zmq"


class ShmProducer(ServerProducer):
    channel = "shm"


class ClientConsumer(Consumer):
    """Our embedding client: each fetch gives a new tensor."""

    parks = True

    def __init__(self, address: str, num_bytes: int) -> None:
        super().__init__(address, num_bytes)
        self._client = EmbeddingClient(FINGERPRINT, None, receive_channels([address]))
        self._future: Future[torch.Tensor] = Future()

    def expect(self, item: EmbeddingRef) -> None:
        self._future = self._client.fetch(item, _WAIT_S)

    def collect(self) -> torch.Tensor:
        return self._future.result(_WAIT_S)

    def done(self, item: EmbeddingRef) -> None:
        self._client.release(item)

    def close(self) -> None:
        self._client.close()


class NixlProducer(Producer):
    """An agent whose tensor is registered beforehand; a new embedding is copied into the registered memory."""

    def __init__(self, tensor: torch.Tensor, folder: Path) -> None:
        from nixl._api import nixl_agent, nixl_agent_config

        self._source = tensor
        self._registered = tensor.clone()
        self._agent = nixl_agent("producer", nixl_agent_config(backends=["UCX"]))
        self._agent.register_memory([self._registered])
        remote = self._agent.get_serialized_descs(self._agent.get_xfer_descs([self._registered]))
        self.address = (self._agent.get_agent_metadata(), remote)

    def publish(self) -> None:
        np.copyto(self._registered.numpy(), self._source.numpy())


class NixlConsumer(Consumer):
    """Reads into memory that is registered beforehand, and polls for the end."""

    def __init__(self, address: Any, num_bytes: int) -> None:
        super().__init__(address, num_bytes)
        from nixl._api import nixl_agent, nixl_agent_config

        metadata, remote = address
        self._tensor = torch.zeros(num_bytes // 4)
        self._agent = nixl_agent("consumer", nixl_agent_config(backends=["UCX"]))
        self._registration = self._agent.register_memory([self._tensor])
        self._producer = self._agent.add_remote_agent(metadata)
        self._remote = self._agent.deserialize_descs(remote)
        self._local = self._agent.get_xfer_descs([self._tensor])

    def collect(self) -> torch.Tensor:
        handle = self._agent.initialize_xfer("READ", self._local, self._remote, self._producer)
        state = self._agent.transfer(handle)
        end = time.monotonic() + _WAIT_S
        while state != "DONE":
            assert state != "ERR", "NIXL failed"
            assert time.monotonic() < end, "NIXL does not end"
            state = self._agent.check_xfer_state(handle)
        self._agent.release_xfer_handle(handle)
        return self._tensor

    def close(self) -> None:
        self._agent.deregister_memory(self._registration)
        self._agent.remove_remote_agent(self._producer)


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


PRODUCERS: dict[str, Any] = {
    "memcpy": MemcpyProducer,
    "socket": SocketProducer,
    "zmq": ZmqProducer,
    "shm": ShmProducer,
    "nixl": NixlProducer,
    "ec_example": FileProducer,
}
CONSUMERS: dict[str, Any] = {
    "memcpy": MemcpyConsumer,
    "socket": SocketConsumer,
    "zmq": ClientConsumer,
    "shm": ClientConsumer,
    "nixl": NixlConsumer,
    "ec_example": FileConsumer,
}
