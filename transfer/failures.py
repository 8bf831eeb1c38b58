"""How an engine's own process tells its worker why a request could not get an embedding.

vLLM finishes such a request with the bare reason "error"; the typed cause travels here, over a loopback PUSH/PULL pair.
"""

import logging
import threading
from collections import OrderedDict

import zmq

from transfer.codec import MAX_CONTROL_BYTES, decode, encode
from transfer.errors import ProtocolError, TriptychError, error_from_code
from transfer.messages import FailureReport
from transfer.rate_limit import LimitedLog

logger = logging.getLogger(__name__)

_MAX_MESSAGE_CHARACTERS = 4096
_MAX_KEPT = 4096
_POLL_MS = 200
_CLOSE_TIMEOUT_S = 5.0


class FailureReporter:
    """The engine's end. `report` never blocks: without a collector the report is dropped. One thread alone uses it."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is `FailureCollector.endpoint` of the worker."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)

    def report(self, request_id: str, error: TriptychError) -> None:
        """Send the cause of the failure of `request_id`."""
        # The message may hold anything, and a report must not fail the engine that makes it.
        message = error.message[:_MAX_MESSAGE_CHARACTERS].encode(errors="replace").decode()
        try:
            self._socket.send(encode(FailureReport(request_id, error.code, message)), zmq.DONTWAIT)
        except zmq.Again:
            logger.warning("no one collects failures; dropped that of request %s", request_id)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()
        self._context.term()


class FailureCollector:
    """The worker's end: a thread that keeps the newest reports until they are asked for."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_CONTROL_BYTES)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._reports: OrderedDict[str, TriptychError] = OrderedDict()
        self._arrived = threading.Condition()
        self._closing = threading.Event()
        self._log = LimitedLog(logger)
        self._thread = threading.Thread(target=self._collect, name="triptych-failures", daemon=True)
        self._thread.start()

    def take(self, request_id: str, timeout_s: float) -> TriptychError | None:
        """The cause reported for `request_id`, waiting up to `timeout_s`; None when there is none. Blocks."""
        with self._arrived:
            self._arrived.wait_for(lambda: request_id in self._reports, timeout_s)
            return self._reports.pop(request_id, None)

    def close(self) -> None:
        """Stop the thread; idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():  # it may still use the socket
            logger.error("the thread that collects failures did not stop within %s s", _CLOSE_TIMEOUT_S)
            return
        self._socket.close()
        self._context.term()

    def _collect(self) -> None:
        while not self._closing.is_set():
            if not self._socket.poll(_POLL_MS):
                continue
            try:
                frames = self._socket.recv_multipart()
                if len(frames) != 1:
                    raise ProtocolError(f"expected one frame, got {len(frames)}")
                report = decode(frames[0], FailureReport)
            except ProtocolError as error:
                self._log.warning(f"dropped a malformed failure report: {error}")
                continue
            with self._arrived:
                self._reports[report.request_id] = error_from_code(report.code, report.message)
                while len(self._reports) > _MAX_KEPT:
                    self._reports.popitem(last=False)
                self._arrived.notify_all()
