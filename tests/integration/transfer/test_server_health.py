"""Guards: a server whose control thread has ended, so that nobody is answered, and which still looks alive."""

import logging
from typing import Any

import pytest
import torch

from transfer import EncoderLost
from transfer.server_thread import ServerThread

TENSOR = torch.arange(24, dtype=torch.float32).view(6, 4)
WAIT_S = 30.0


def test_a_control_thread_that_fails_is_logged_and_seen(
    bench: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server, client = bench.server(), bench.client()
    server.check_health()
    waiting = client.fetch(bench.announce(server, TENSOR), WAIT_S)
    eventually(lambda: server.stats().num_parked == 1)

    def fail(thread: ServerThread) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(ServerThread, "_expire", fail)
    assert isinstance(waiting.exception(WAIT_S), EncoderLost)

    def is_healthy() -> bool:
        try:
            server.check_health()
        except EncoderLost:
            return False
        return True

    eventually(lambda: not is_healthy())
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None and "a defect" in str(record.exc_info[1])
    assert server.stats().num_parked == 0
    server.close()
    server.close()


def test_a_closed_server_is_not_an_ill_one(bench: Any) -> None:
    server = bench.server()
    server.close()
    server.check_health()
