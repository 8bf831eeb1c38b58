"""Logs of a replica in which every line about a request carries the request's id."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar

# Packages whose loggers are ours.
_PACKAGES = ("cluster", "encoder_workers", "llm_workers", "transfer", "npu_kernels")
_FORMAT = "%(asctime)s %(levelname)s {stage} request=%(request_id)s %(name)s: %(message)s"
_NO_REQUEST = "-"

_current: ContextVar[str] = ContextVar("triptych_request_id", default=_NO_REQUEST)


def log_as(request_id: str) -> None:
    """Name the request that this task, and those it starts from now on, work for."""
    _current.set(request_id)


def configure_logging(stage: str, level: str) -> logging.Handler:
    """Send this process's own log lines to its standard error; called once, by the replica."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT.format(stage=stage)))
    handler.addFilter(_add_request_id)
    for package in _PACKAGES:
        logger = logging.getLogger(package)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    return handler


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = _current.get()
    return True
