"""The processes below this one: finds them, also orphaned ones, and sees to it that none is left at the end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from cluster.cli.segments import Segments

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.1
_TRACKER_GRACE_S = 5.0


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (Linux, prctl(2)); else init would, out of sight.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def descendants() -> list[int]:
    """Process ids of all children and their children, zombies left out, in no order."""
    children: dict[int, list[int]] = {}
    for process, parent, ended in _processes():
        if not ended:
            children.setdefault(parent, []).append(process)
    found: list[int] = []
    unseen = list(children.get(os.getpid(), ()))
    while unseen:
        process = unseen.pop()
        found.append(process)
        unseen.extend(children.get(process, ()))
    return found


def own_children() -> set[int]:
    """Process ids of the children that this process has now, zombies as well."""
    return {process for process, parent, _ in _processes() if parent == os.getpid()}


def reap_adopted(own: Collection[int]) -> None:
    """Let the system forget orphans that came here and have ended, which would stay in its table of processes.

    Args:
        own: children that this process started itself, which whoever started them waits for.
    """
    for process, parent, ended in _processes():
        if ended and parent == os.getpid() and process not in own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process, os.WNOHANG)


def end_descendants(grace_s: float, segments: Segments) -> int:
    """Wait until no descendant lives; after `grace_s` those left are killed. Returns how many had to be.

    What they left in shared memory is removed, as far as `segments` saw it before or sees it meanwhile.
    For a process that starts nothing else meanwhile, and that has called `adopt_orphans` before it started anything.
    """
    deadline = time.monotonic() + grace_s
    killed: set[int] = set()
    while True:
        _reap()
        left = descendants()
        if not left:
            segments.remove_leftovers()
            return len(killed)
        segments.look(left)
        late_s = time.monotonic() - deadline
        for process in left:
            # A tracker ends by itself after the processes it watches, and removes their shared memory.
            if late_s > (_TRACKER_GRACE_S if _is_resource_tracker(process) else 0.0):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                killed.add(process)
        time.sleep(_POLL_S)


def _processes() -> Iterator[tuple[int, int, bool]]:
    """(process id, its parent's, whether it has ended and is a zombie) of all that this process sees."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state parent ...; the name may hold blanks and parentheses itself.
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            yield int(stat.parent.name), int(parent), state == "Z"


def _is_resource_tracker(process: int) -> bool:
    """Whether this is the process with which Python's multiprocessing cleans up after others."""
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def _reap() -> None:
    """Collect every child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
