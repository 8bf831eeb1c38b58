"""Groups of one rank share a thread, and work."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
from pathlib import Path

import torch
from torch import distributed

from llm_workers import lone_groups


def num_loops():
    return sum(task.read_text() == "gloo_tcp_loop\\n" for task in Path("/proc/self/task").glob("*/comm"))


lone_groups.install()
lone_groups.install()
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
groups = [distributed.new_group([0], backend="gloo") for _ in range(5)]
for group in groups:
    ones = torch.ones(3)
    distributed.all_reduce(ones, group=group)
    distributed.barrier(group=group)
    assert ones.tolist() == [1.0, 1.0, 1.0]
print(num_loops())
distributed.destroy_process_group()
"""


def test_a_dozen_groups_have_one_loop() -> None:
    """In a process of its own, since what is replaced stays."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "1\n"
