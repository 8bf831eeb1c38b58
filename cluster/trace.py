"""Where one request's time went: moments on its way, written as one JSON line per request when asked for.

Moments are seconds of the monotonic clock, which all processes of one host share; on several hosts only the moments of
one stage compare with each other.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from pathlib import Path

from vllm.outputs import RequestOutput

logger = logging.getLogger(__name__)


class RequestTrace:
    """The moments of one request, by name; a name marked again keeps its first moment."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.retries: Counter[str] = Counter()
        self._moments: dict[str, float] = {}

    def mark(self, name: str, moment: float | None = None) -> None:
        """Record `moment`, or now."""
        self._moments.setdefault(name, time.monotonic() if moment is None else moment)

    def retried(self, code: str) -> None:
        """Count a step that is tried again after a failure with this code."""
        self.retries[code] += 1

    def mark_engine(self, stage: str, output: RequestOutput) -> None:
        """Record what an engine measured itself: when it queued, scheduled and finished the first token."""
        metrics = output.metrics
        if metrics is not None:
            for name in ("queued_ts", "scheduled_ts", "first_token_ts"):
                if moment := getattr(metrics, name):
                    self.mark(f"{stage}_{name.removesuffix('_ts')}", moment)

    def to_json(self) -> str:
        """One line, without the line end."""
        return json.dumps({"request_id": self.request_id, **self._moments})


class TraceWriter:
    """Appends traces to a file; without a path it does nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def write(self, trace: RequestTrace) -> None:
        """Append one line; a file that cannot be written is logged, never the request's failure."""
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as out:
                out.write(trace.to_json() + "\n")
        except OSError as error:
            logger.warning("cannot write the trace of request %s: %s", trace.request_id, error)
