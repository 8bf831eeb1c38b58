"""Who computes first where stages share the cores of one host: the later a stage, the sooner.

A token that decode owes keeps a reader waiting, a prompt delays one answer, and an embedding its prompt. Without this
an encoder with pictures takes as much of a core as all streams that run beside it together.
"""

import os
import threading
from collections.abc import Mapping
from typing import Literal

NICENESS: Mapping[Literal["encoder", "prefill", "decode"], int] = {"encoder": 10, "prefill": 5, "decode": 0}
"""By how much each stage's computing gives way, in steps of `nice`: 10 is a tenth of a core that is wanted twice."""
_MOST = 19


def give_way(niceness: int) -> None:
    """Lower the calling thread by so many steps, and those that it begins later; other threads stay as they are."""
    thread = threading.get_native_id()
    now = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, min(_MOST, now + niceness))
