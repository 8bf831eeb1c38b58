"""NIXL: a one-sided read over UCX from registered memory into registered memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nixl._api import nixl_agent, nixl_agent_config

from benchmarks.transfer_peers.base import WAIT_S, Consumer, Producer
from transfer import tensor_to_buffer


class NixlProducer(Producer):
    """An agent whose tensor is registered beforehand; a new embedding is copied into the registered memory."""

    def __init__(self, tensor: torch.Tensor, folder: Path) -> None:
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
        metadata, remote = address
        self._tensor = torch.zeros(num_bytes // 4)
        self._memory = tensor_to_buffer(self._tensor)
        # It polls itself; a progress thread that spins beside that takes a core from every peer.
        self._agent = nixl_agent("consumer", nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
        self._registration = self._agent.register_memory([self._tensor])
        self._producer = self._agent.add_remote_agent(metadata)
        self._remote = self._agent.deserialize_descs(remote)
        self._local = self._agent.get_xfer_descs([self._tensor])

    def collect(self) -> memoryview:
        handle = self._agent.initialize_xfer("READ", self._local, self._remote, self._producer)
        state = self._agent.transfer(handle)
        end = time.monotonic() + WAIT_S
        while state != "DONE":
            assert state != "ERR", "NIXL failed"
            assert time.monotonic() < end, "NIXL does not end"
            state = self._agent.check_xfer_state(handle)
        self._agent.release_xfer_handle(handle)
        return self._memory

    def close(self) -> None:
        self._agent.deregister_memory(self._registration)
        self._agent.remove_remote_agent(self._producer)
