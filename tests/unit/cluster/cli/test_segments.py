"""What killed processes leave in shared memory goes; what anybody still uses stays."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.cli.segments import Segments

# Ends without cleaning up when killed: nobody else knows of the segment.
HOLDER = """
import mmap, os, sys, time
with open(sys.argv[1], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 4096)
print("mapped", flush=True)
time.sleep(300)
"""


@contextmanager
def holder(segment: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that maps `segment`, killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(segment)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mapped\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def segment(name: str) -> Iterator[Path]:
    path = Path("/dev/shm") / name
    path.write_bytes(bytes(4096))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    segments = Segments()
    with segment(f"test-left-{tmp_path.name}") as left, segment(f"test-strange-{tmp_path.name}") as strange:
        with holder(left) as process:
            segments.look([process.pid])
        assert segments.remove_leftovers() == 1
        assert not left.exists()
        assert strange.exists()  # nobody of ours used it


def test_what_another_process_uses_stays(tmp_path: Path) -> None:
    segments = Segments()
    with segment(f"test-shared-{tmp_path.name}") as shared, holder(shared):
        with holder(shared) as process:
            segments.look([process.pid])
        assert segments.remove_leftovers() == 0
        assert shared.exists()


def test_processes_that_are_gone_have_nothing(tmp_path: Path) -> None:
    segments = Segments()
    with segment(f"test-gone-{tmp_path.name}") as kept:
        with holder(kept) as process:
            pass
        segments.look([process.pid])
        assert segments.remove_leftovers() == 0
        assert kept.exists()
