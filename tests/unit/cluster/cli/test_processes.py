"""No process is left: found at any depth, waited for, and killed when it does not end. Run in a process of its own."""

import subprocess
import sys

PROGRAM = """
import subprocess, sys, time
from cluster.cli.processes import adopt_orphans, descendants, end_descendants
from cluster.cli.segments import Segments

adopt_orphans()
# A child that leaves a grandchild behind in another session, as a killed replica leaves its engine.
child = subprocess.Popen(
    [sys.executable, "-c", "import subprocess; subprocess.Popen({grandchild!r}, start_new_session=True)"],
)
child.wait()
deadline = time.monotonic() + 20
while len(descendants()) != 1 and time.monotonic() < deadline:
    time.sleep(0.01)
print("before", len(descendants()))
print("killed", end_descendants({grace_s}, Segments()))
print("after", len(descendants()))
"""


REAPING = """
import subprocess, sys, time
from cluster.cli.processes import adopt_orphans, own_children, reap_adopted

adopt_orphans()
own = subprocess.Popen(["sleep", "0"])
orphan = "import os, subprocess; print(subprocess.Popen(['sleep', '0.5'], start_new_session=True).pid)"
adopted = int(subprocess.run([sys.executable, "-c", orphan], check=True, capture_output=True, text=True).stdout)
deadline = time.monotonic() + 20
while adopted in own_children() and time.monotonic() < deadline:
    reap_adopted({own.pid})
    time.sleep(0.01)
print(adopted in own_children(), own.pid in own_children(), own.wait())
"""


def run(grandchild: list[str], grace_s: float) -> list[str]:
    program = PROGRAM.format(grandchild=grandchild, grace_s=grace_s)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_an_orphan_that_stays_is_killed() -> None:
    assert run(["sleep", "300"], 0.2) == ["before 1", "killed 1", "after 0"]


def test_an_orphan_that_ends_in_time_is_only_waited_for() -> None:
    assert run(["sleep", "2"], 30.0) == ["before 1", "killed 0", "after 0"]


def test_an_orphan_that_has_ended_is_forgotten_and_a_child_is_left_to_its_parent() -> None:
    """A service that takes replicas away for weeks would fill the table of processes; Ray asks how its own ended."""
    done = subprocess.run([sys.executable, "-c", REAPING], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "True", "0"]
