"""How several processes share out the tests: a file stays together, and so does what sweeps shared memory."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
# What one of these leaves under /dev/shm, to see it swept, another one's sweep would take away.
_SWEEPING = ("unit/transfer", "unit/llm_workers", "unit/cluster/cli", "integration/transfer")

_PACKAGES = ("cluster", "configs", "encoder_workers", "llm_workers", "npu_kernels", "transfer")


@pytest.fixture(autouse=True)
def _heard_loggers() -> None:
    """What configures the logging of a whole process, as servers do, silences loggers for the tests behind it."""
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.name.partition(".")[0] in _PACKAGES:
            logger.disabled, logger.propagate = False, True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name each test's group for `pytest --dist=loadgroup`."""
    for item in items:
        path = item.path.relative_to(_TESTS).as_posix()
        group = "shared memory" if path.startswith(_SWEEPING) else path
        item.add_marker(pytest.mark.xdist_group(group))
