"""The board at the head of an arena: which transfers lie where in it, so that readers on this host need not ask.

    slot:  transfer id 16 | block id 16 | offset 8 | length 8 | first row 4 | checksum 4 | has checksum 4 | CRC 4

One process writes, any number read without a lock. A slot that is read while it changes fails its CRC or names another
transfer; ids are never reused. A transfer that finds its set of slots full is not listed, and is asked for instead.
"""

import binascii
import mmap
import struct
import threading
import zlib
from typing import NamedTuple

_SLOT = struct.Struct("<16s16sQQIIII")
_SLOTS_PER_SET = 8
_NUM_SETS = 512
_SET_BYTES = _SLOTS_PER_SET * _SLOT.size
BOARD_BYTES = _NUM_SETS * _SET_BYTES
"""Length of the board, which stands at the arena's first byte. Part of the protocol."""
_ID_BYTES = 16


class Listing(NamedTuple):
    """Where a transfer's rows lie: `num_bytes` from `offset` of the arena, in the block `block_id` (hex digits)."""

    block_id: str
    offset: int
    num_bytes: int
    row_start: int
    checksum: int | None

    def first_row(self) -> int:
        """`row_start`, as a key to sort by."""
        return self.row_start


class Board:
    """The writer's end. Thread-safe."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._slots: dict[str, int] = {}
        self._used: set[int] = set()

    def put(self, transfer_id: str, listing: Listing) -> bool:
        """List a transfer; False when it cannot be (no room in its set, or an id that is not 32 hex digits)."""
        key = _key(transfer_id)
        if key is None:
            return False
        body = _SLOT.pack(
            key,
            bytes.fromhex(listing.block_id),
            listing.offset,
            listing.num_bytes,
            listing.row_start,
            listing.checksum or 0,
            listing.checksum is not None,
            0,
        )[:-4]
        first = _set_start(key)
        with self._lock:
            for start in range(first, first + _SET_BYTES, _SLOT.size):
                if start not in self._used:
                    self._used.add(start)
                    self._slots[transfer_id] = start
                    self._memory[start : start + _SLOT.size] = body + zlib.crc32(body).to_bytes(4, "little")
                    return True
        return False

    def remove(self, transfer_id: str) -> None:
        """Take a transfer off the board; nothing when it is not on it."""
        with self._lock:
            start = self._slots.pop(transfer_id, None)
            if start is not None:
                self._memory[start : start + _SLOT.size] = bytes(_SLOT.size)
                self._used.discard(start)


def find_listing(memory: mmap.mmap, transfer_id: str) -> Listing | None:
    """What the board of a mapped arena says of a transfer; None when it is not listed."""
    key = _key(transfer_id)
    if key is None:
        return None
    first = _set_start(key)
    slots = memory[first : first + _SET_BYTES]
    place = slots.find(key)
    while place >= 0:
        slot = slots[place : place + _SLOT.size]
        if place % _SLOT.size == 0 and zlib.crc32(slot[:-4]) == int.from_bytes(slot[-4:], "little"):
            _, block_id, offset, num_bytes, row_start, checksum, has_checksum, _ = _SLOT.unpack(slot)
            return Listing(block_id.hex(), offset, num_bytes, row_start, checksum if has_checksum else None)
        place = slots.find(key, place + 1)
    return None


def _key(transfer_id: str) -> bytes | None:
    if len(transfer_id) != 2 * _ID_BYTES:
        return None
    try:
        return binascii.unhexlify(transfer_id)
    except ValueError:
        return None


def _set_start(key: bytes) -> int:
    return int.from_bytes(key[:4], "little") % _NUM_SETS * _SET_BYTES
