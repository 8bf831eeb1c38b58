"""Guards: a thread that gives way taking others of its process with it, or helpers that do not follow their maker."""

import os
import threading

from configs.priority import NICENESS, give_way


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_thread_gives_way_with_those_that_it_begins_and_nobody_else() -> None:
    before, seen = niceness(), []

    def tower() -> None:
        give_way(NICENESS["encoder"])
        seen.append(niceness())
        helper = threading.Thread(target=lambda: seen.append(niceness()))
        helper.start()
        helper.join()

    thread = threading.Thread(target=tower)
    thread.start()
    thread.join()
    assert seen == [min(19, before + NICENESS["encoder"])] * 2
    assert niceness() == before


def test_later_stages_come_first() -> None:
    assert NICENESS["decode"] < NICENESS["prefill"] < NICENESS["encoder"]
