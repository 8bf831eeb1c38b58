"""Files under /dev/shm that live as long as the process that made them, told from leftovers by a file lock.

The owner holds the lock for as long as it lives. The kernel drops it with the process, so whoever can take the lock
knows that the owner is dead and may remove the file, also across containers that do not see each other's pids.
"""

import fcntl
import os
import secrets
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_PART = "."


def create_owned(prefix: str) -> tuple[int, str]:
    """A new empty file `prefix...`, locked: its descriptor, to be kept open, and its name under /dev/shm."""
    while True:
        name = f"{prefix}{os.getpid()}-{secrets.token_hex(8)}"
        descriptor = os.open(SHARED_MEMORY / name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a sweeper got in between and is about to remove the file
            os.close(descriptor)
            continue
        if os.fstat(descriptor).st_nlink:
            return descriptor, name
        os.close(descriptor)


def part_name(owner: str, part: int) -> str:
    """Name of a further file that belongs to the owned file `owner` and is swept with it."""
    return f"{owner}{_PART}{part}"


def sweep_unowned(prefix: str) -> int:
    """Remove the files of dead owners, parts included; returns how many."""
    found = list(SHARED_MEMORY.glob(f"{prefix}*"))
    num_removed = sum(_sweep(path) for path in found if _PART not in path.name)
    for part in found:
        # An owner is there before its parts and goes after them.
        if _PART in part.name and not (SHARED_MEMORY / part.name.partition(_PART)[0]).exists() and part.exists():
            part.unlink(missing_ok=True)
            num_removed += 1
    return num_removed


def _sweep(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False  # gone meanwhile, or another user's
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
