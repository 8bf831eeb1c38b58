"""How several processes share out the tests: a file stays together, and so does what sweeps shared memory."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
# What one of these leaves under /dev/shm, to see it swept, another one's sweep would take away.
_SWEEPING = ("unit/transfer", "unit/llm_workers", "unit/cluster/cli", "integration/transfer")


@pytest.fixture(autouse=True)
def _warnings_are_heard() -> None:
    """Building vLLM's configuration raises the root logger's level, and what tests wait for in a log would not come."""
    logging.root.setLevel(min(logging.root.level, logging.WARNING))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name each test's group for `pytest --dist=loadgroup`."""
    for item in items:
        path = item.path.relative_to(_TESTS).as_posix()
        group = "shared memory" if path.startswith(_SWEEPING) else path
        item.add_marker(pytest.mark.xdist_group(group))
