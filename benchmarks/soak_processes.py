"""The two kinds of process of `benchmarks.soak`: one that publishes embeddings and one that fetches and checks them."""

from __future__ import annotations

import os
import random
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from transfer import (
    EmbeddingClient,
    EmbeddingRef,
    EmbeddingServer,
    HeldBlock,
    HostEmbedding,
    ServerSettings,
    TriptychError,
    new_transfer_id,
    receive_channels,
    send_channels,
    tensor_to_buffer,
)
from transfer.channels.shm_channel import ShmSendChannel

FINGERPRINT = "soak"
LEASE_S = 8.0
_WIDTH = 1024
_ARENA_BYTES = 16 * 2**20
_MAX_LEASES = 24
_SIZES = [1, 7, 64, 300, 1500]
_FETCH_S = 20.0


@dataclass(frozen=True)
class Item:
    """What a producer promises: a reference, and the CRC-32 of the bytes behind it."""

    ref: EmbeddingRef
    crc: int


@dataclass(frozen=True)
class Report:
    """What a process holds."""

    num_leases: int
    bytes_in_use: int
    num_pending: int
    num_descriptors: int
    resident_bytes: int


def produce(pipe: Connection, seed: int) -> None:
    """Announce and publish embeddings of random sizes until told to pause; some are published twice from one memory."""
    chance = random.Random(seed)
    torch.set_num_threads(1)
    channels = send_channels(["shm", "zmq"], _ARENA_BYTES)
    (arena,) = [channel for channel in channels if isinstance(channel, ShmSendChannel)]
    num_free = arena.num_free_bytes
    server = EmbeddingServer(FINGERPRINT, ServerSettings(lease_s=LEASE_S, checksum=True), channels)
    source = torch.from_numpy(np.random.default_rng(seed).standard_normal((max(_SIZES), _WIDTH), np.float32))
    paused = False
    while True:
        while pipe.poll(0.0 if not paused and server.stats().num_leases < _MAX_LEASES else 0.02):
            command = pipe.recv()
            if command == "stop":
                server.close()
                return
            if command == "report":
                stats = server.stats()
                pipe.send(_report(stats.num_leases, num_free - arena.num_free_bytes, stats.num_parked))
            paused = paused or command == "pause"
        if paused or server.stats().num_leases >= _MAX_LEASES:
            continue
        tensor = source[: chance.choice(_SIZES)] * chance.uniform(0.5, 2.0)
        crc = zlib.crc32(tensor_to_buffer(tensor))
        placed = server.place(tensor) if chance.random() < 0.7 else None
        given = HostEmbedding.of(tensor) if placed is None else placed
        refs = [_announce(server, tensor) for _ in range(chance.choice([1, 1, 2]))]
        for ref in refs:
            pipe.send(Item(ref, crc))
        time.sleep(chance.choice([0.0, 0.002, 0.02]))
        for ref in refs:
            server.publish(ref.transfer_id, given.memory, given.shape, given.dtype)
        del tensor, placed, given


def _announce(server: EmbeddingServer, tensor: torch.Tensor) -> EmbeddingRef:
    transfer_id = new_transfer_id()
    num_tokens, width = tensor.shape
    server.announce(transfer_id, "key", num_tokens, width, "float32")
    return EmbeddingRef(
        "key", transfer_id, (server.endpoint,), num_tokens, width, "float32", tensor.nbytes, FINGERPRINT
    )


def consume(pipe: Connection, seed: int) -> None:
    """Fetch what is named, in place or not, check it, release most of it, and tell each outcome once."""
    chance = random.Random(seed)
    torch.set_num_threads(1)
    names = chance.choice([["shm", "zmq"], ["shm", "zmq"], ["zmq"]])
    client = EmbeddingClient(FINGERPRINT, None, receive_channels(names))
    pool = ThreadPoolExecutor(4)
    sending = threading.Lock()

    def fetch(item: Item, pause_s: float, releases: bool) -> None:
        outcome = _fetch(client, item, pause_s)
        if releases:
            client.release(item.ref)
        with sending:
            pipe.send(outcome)

    while True:
        message = pipe.recv()
        if message == "stop":
            pool.shutdown()
            client.close()
            return
        if message == "report":
            with sending:
                pipe.send(_report(0, 0, client.num_pending))
        elif isinstance(message, Item):
            pause_s = chance.choice([0.0, 0.0, 0.0, 0.05])
            pool.submit(fetch, message, pause_s, chance.random() < 0.95)


def _fetch(client: EmbeddingClient, item: Item, pause_s: float) -> tuple[str, int]:
    try:
        arrived = client.fetch_in_place(item.ref, _FETCH_S).result(2 * _FETCH_S)
    except TriptychError as error:
        return error.code, 0
    time.sleep(pause_s)  # what was lent must stay as it is for as long as it is held
    data = arrived.memory if isinstance(arrived, HeldBlock) else tensor_to_buffer(arrived)
    is_right = zlib.crc32(data) == item.crc
    if isinstance(arrived, HeldBlock):
        arrived.close()
    return ("ok", item.ref.expected_bytes) if is_right else ("wrong", 0)


def _report(num_leases: int, bytes_in_use: int, num_pending: int) -> Report:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    num_descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return Report(num_leases, bytes_in_use, num_pending, num_descriptors, pages * os.sysconf("SC_PAGESIZE"))
