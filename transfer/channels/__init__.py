"""The ways in which an embedding's bytes travel, and the factories that make them by name, best first."""

from collections.abc import Sequence

from transfer.channels.base import ReceiveChannel, SendChannel
from transfer.channels.hccl_channel import HcclReceiveChannel, HcclSendChannel
from transfer.channels.shm_channel import ShmReceiveChannel, ShmSendChannel
from transfer.channels.zmq_channel import ZmqReceiveChannel, ZmqSendChannel

CHANNEL_NAMES = ("shm", "zmq", "hccl")


def send_channels(
    names: Sequence[str], arena_bytes: int, host: str = "127.0.0.1", device: str = "cpu"
) -> list[SendChannel]:
    """The encoder's ends.

    `arena_bytes` is the shared memory that shm reserves, of this process alone; `host` and `device` ('cpu', 'cuda' or
    'npu') are where and on what hccl meets the other ends.

    Raises ValueError for an unknown or repeated name, OSError when /dev/shm has no room for the arena.
    """
    _check_names(names)
    made: list[SendChannel] = []
    for name in names:
        if name == "shm":
            made.append(ShmSendChannel(arena_bytes))
        else:
            made.append(ZmqSendChannel() if name == "zmq" else HcclSendChannel(host, device))
    return made


def receive_channels(names: Sequence[str], device: str = "cpu") -> list[ReceiveChannel]:
    """The client's ends, in the order in which they are offered. Raises ValueError as `send_channels`."""
    _check_names(names)
    made: list[ReceiveChannel] = []
    for name in names:
        if name == "hccl":
            made.append(HcclReceiveChannel(device))
        else:
            made.append(ShmReceiveChannel() if name == "shm" else ZmqReceiveChannel())
    return made


def _check_names(names: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(CHANNEL_NAMES))
    if unknown or len(set(names)) != len(names) or not names:
        raise ValueError(f"channels must be distinct names of {list(CHANNEL_NAMES)}, got {list(names)}")


__all__ = ["CHANNEL_NAMES", "ReceiveChannel", "SendChannel", "receive_channels", "send_channels"]
