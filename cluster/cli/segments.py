"""Shared memory that the processes below this one have mapped, so that what is left of it at the end can be removed.

Engines clean up after themselves when they end in order. Ray kills the children of a replica that it ends, among them
those that would have done it; the segments (hundreds of MiB each) would then stay until the machine restarts.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")
# Files that are gone already end in " (deleted)" there.
_MAPPED = re.compile(r" /dev/shm/([^/\n]+?)( \(deleted\))?$", re.MULTILINE)


class Segments:
    """Names seen in use, over time. `look` while the processes live, `remove_leftovers` when they are gone."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def look(self, processes: Iterable[int]) -> None:
        """Note what these processes have mapped now."""
        for process in processes:
            self._seen |= _mapped_by(process)

    def remove_leftovers(self) -> int:
        """Remove the noted files that are still there and that no process of this machine maps; returns how many."""
        left = {name for name in self._seen if (_SHARED_MEMORY / name).exists()}
        if not left:
            return 0
        for entry in Path("/proc").glob("[0-9]*"):
            left -= _mapped_by(int(entry.name))
        for name in left:
            with contextlib.suppress(OSError):  # gone meanwhile
                (_SHARED_MEMORY / name).unlink()
        return len(left)


def _mapped_by(process: int) -> set[str]:
    """Names of the files under /dev/shm that `process` maps; none when it is gone or another user's."""
    try:
        maps = Path(f"/proc/{process}/maps").read_text(errors="replace")
    except OSError:
        return set()
    return {name for name, deleted in _MAPPED.findall(maps) if not deleted}
