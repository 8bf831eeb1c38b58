"""The settings of the embedding path."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from configs.base import Settings
from configs.sizes import ByteSize


class TransferConfig(Settings):
    """The embedding path between encoder and prefill."""

    channels: tuple[Literal["shm", "zmq", "hccl"], ...] = Field(
        ("shm", "zmq"),
        min_length=1,
        description="Channels, best first: shm within a host, zmq over the network, hccl from device to device over "
        "torch.distributed (gloo, nccl or hccl by device; not encrypted).",
    )
    arena_bytes: ByteSize = Field(
        2**28,
        ge=2**20,
        description="Embeddings that each encoder replica promises at a time, and the memory in /dev/shm that it "
        "reserves for the shm channel. Beyond it new requests wait (limits.busy_wait_s) before anything is encoded.",
    )
    zmq_streams: int = Field(
        1,
        ge=1,
        le=16,
        description="Connections to each encoder that embeddings over 1 MiB share on the zmq channel: more where one "
        "alone does not fill the network.",
    )
    checksum: bool = Field(False, description="Check a CRC-32 of every embedding; costs about 1 ms per MiB.")
    lease_s: float = Field(
        60.0,
        gt=0,
        description="How long an encoder keeps a ready embedding that nobody collects. Requests that wait renew "
        "theirs, so this is how long the embeddings of an ingress that died stay.",
    )
    bind_host: str | None = Field(
        None, description="Address the embedding servers bind; the node's own address if absent."
    )
    curve_key_file: Path | None = Field(
        None,
        description="File that 'triptych keygen' wrote, the same on every node; TRIPTYCH_CURVE_KEY replaces it. "
        "Needed wherever encoders can be reached from other machines.",
    )
    insecure: bool = Field(
        False, description="Let encoders answer other machines without a key: anyone who reaches them reads embeddings."
    )

    @model_validator(mode="after")
    def _distinct_channels(self) -> TransferConfig:
        if len(set(self.channels)) != len(self.channels):
            raise ValueError(f"channels names one of them twice: {list(self.channels)}")
        return self

    @model_validator(mode="after")
    def _key_or_insecure(self) -> TransferConfig:
        if self.insecure and self.curve_key_file is not None:
            raise ValueError("insecure and curve_key_file exclude each other: remove one of them")
        return self
