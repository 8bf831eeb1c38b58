"""Identities: content keys of items, ids of transfers and ids of hosts."""

import functools
import hashlib
import os
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

from transfer.messages import Modality, OptionValue

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SHARED_MEMORY = Path("/dev/shm")


def item_key(
    media: bytes,
    modality: Modality,
    processor_options: Iterable[tuple[str, OptionValue]],
    model: str,
    revision: str,
    tenant: str,
) -> str:
    """Content key of an item, 64 hex digits: equal exactly when its embedding is interchangeable for this tenant.

    Taken from the media's bytes, never from a URL. The order of the options does not matter; their types do.
    """
    options = sorted((name, f"{type(value).__name__}:{value!r}") for name, value in processor_options)
    flat = [text.encode() for option in options for text in option]
    fields = [b"item", media, modality.encode(), model.encode(), revision.encode(), tenant.encode(), *flat]
    return _digest(fields)


def new_transfer_id() -> str:
    """128 random bits as 32 hex digits; never reused, and not to be guessed."""
    return secrets.token_hex(16)


@functools.cache
def host_id() -> str:
    """Equal in two processes exactly when they can map each other's POSIX shared memory.

    From the kernel's boot id, the host name, the identity of the mounted /dev/shm (containers may have their own) and
    the user, since arenas are their owner's alone.
    Where the platform has none of these, a random id: such a process shares memory with nobody.
    """
    try:
        boot_id = _BOOT_ID.read_bytes().strip()
        mount = _SHARED_MEMORY.stat()
    except OSError:
        return secrets.token_hex(32)
    place = f"{mount.st_dev}:{mount.st_ino}:{os.getuid()}"
    return _digest([b"host", boot_id, socket.gethostname().encode(), place.encode()])


def _digest(fields: Iterable[bytes]) -> str:
    # Each field is length-prefixed, so that no two lists of fields give the same stream.
    state = hashlib.blake2b(digest_size=32)
    for field in fields:
        state.update(len(field).to_bytes(8, "little"))
        state.update(field)
    return state.hexdigest()
