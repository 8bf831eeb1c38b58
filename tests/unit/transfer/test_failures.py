"""Guards: a failure whose reason is lost or mixed up, and a stranger's bytes that end the thread that listens."""

import contextlib
import threading
import time
from collections.abc import Iterator

import msgpack
import pytest
import zmq

from transfer import BadMedia, EncoderLost, FailureCollector, FailureReporter, ProtocolError
from transfer.codec import MAX_CONTROL_BYTES, PROTOCOL_VERSION, encode
from transfer.messages import FailureReport, Release

WAIT_S = 20.0


@pytest.fixture
def collector() -> Iterator[FailureCollector]:
    made = FailureCollector()
    yield made
    made.close()
    made.close()


@pytest.fixture
def reporter(collector: FailureCollector) -> Iterator[FailureReporter]:
    made = FailureReporter(collector.endpoint)
    yield made
    made.close()


def test_each_request_gets_its_own_typed_reason_once(collector: FailureCollector, reporter: FailureReporter) -> None:
    reporter.report("a", EncoderLost("gone"))
    reporter.report("b", BadMedia("no image"))
    second, first = collector.take("b", WAIT_S), collector.take("a", WAIT_S)
    assert (type(first), type(second)) == (EncoderLost, BadMedia)
    assert [error.message for error in (first, second) if error] == ["gone", "no image"]
    assert collector.take("a", 0.01) is None


def test_a_reason_that_is_on_its_way_is_waited_for(collector: FailureCollector, reporter: FailureReporter) -> None:
    taken: list[object] = []
    waiting = threading.Thread(target=lambda: taken.append(collector.take("late", WAIT_S)))
    waiting.start()
    time.sleep(0.1)
    reporter.report("other", EncoderLost("not this one"))
    reporter.report("late", EncoderLost("here"))
    waiting.join(WAIT_S)
    assert [type(error) for error in taken] == [EncoderLost]


def test_without_a_report_the_wait_ends_in_time(collector: FailureCollector) -> None:
    started = time.monotonic()
    assert collector.take("never", 0.2) is None
    assert 0.2 <= time.monotonic() - started < WAIT_S


def test_the_newest_report_of_a_request_counts(collector: FailureCollector, reporter: FailureReporter) -> None:
    for reason in ("first", "second"):
        reporter.report("a", EncoderLost(reason))
    reporter.report("end", EncoderLost(""))
    assert collector.take("end", WAIT_S) is not None
    error = collector.take("a", WAIT_S)
    assert error is not None
    assert error.message == "second"


def test_any_text_can_be_reported(collector: FailureCollector, reporter: FailureReporter) -> None:
    reporter.report("a", BadMedia("\udcff" + "x" * 1_000_000))
    error = collector.take("a", WAIT_S)
    assert isinstance(error, BadMedia)
    assert error.message.startswith("?x")
    assert len(error.message) < 10_000


def test_a_report_to_nobody_does_not_block(collector: FailureCollector) -> None:
    collector.close()
    reporter = FailureReporter(collector.endpoint)
    started = time.monotonic()
    for number in range(3000):
        reporter.report(str(number), EncoderLost("x"))
    reporter.close()
    assert time.monotonic() - started < WAIT_S


def test_unread_reports_are_bounded_and_the_oldest_go(collector: FailureCollector, reporter: FailureReporter) -> None:
    for number in range(4200):
        reporter.report(str(number), EncoderLost("x"))
        if number % 500 == 0:  # let it be read, or the socket's queue is full
            assert collector.take(str(number), WAIT_S) is not None
            reporter.report(str(number), EncoderLost("x"))
    assert collector.take("4199", WAIT_S) is not None
    assert collector.take("1", 0.0) is None
    assert collector.take("4198", 0.0) is not None


REPORT = {"request_id": "a", "code": "bad_media", "message": "m"}


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xc1"],
        [msgpack.packb(REPORT)],
        [msgpack.packb([PROTOCOL_VERSION + 1, "FailureReport", REPORT])],
        [msgpack.packb([PROTOCOL_VERSION, "FailureReport", REPORT | {"more": 1}])],
        [msgpack.packb([PROTOCOL_VERSION, "FailureReport", REPORT | {"code": 5}])],
        [encode(Release("a"))],
        [encode(FailureReport("a", "bad_media", "m")), b"second frame"],
        [encode(FailureReport("a", "bad_media", "m" * MAX_CONTROL_BYTES))],
    ],
    ids=["empty", "invalid", "bare", "version", "field", "type", "message", "frames", "long"],
)
def test_a_malformed_report_is_dropped_and_the_next_one_read(collector: FailureCollector, frames: list[bytes]) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(collector.endpoint)
        stranger.send_multipart(frames)
        with contextlib.closing(FailureReporter(collector.endpoint)) as reporter:
            reporter.report("good", EncoderLost("x"))
            assert collector.take("good", WAIT_S) is not None
        assert collector.take("a", 0.2) is None


def test_an_unknown_code_is_named(collector: FailureCollector) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as stranger:
        stranger.connect(collector.endpoint)
        stranger.send(encode(FailureReport("a", "no_such_code", "m")))
        error = collector.take("a", WAIT_S)
    assert isinstance(error, ProtocolError)
    assert "no_such_code" in error.message


def test_a_thread_that_hangs_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hanging, let_go = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        hanging.set()
        assert let_go.wait(2 * WAIT_S)
        raise ProtocolError("it was never read")

    monkeypatch.setattr("transfer.failures._CLOSE_TIMEOUT_S", 0.1)
    monkeypatch.setattr("transfer.failures.decode", hang)
    collector = FailureCollector()
    with contextlib.closing(FailureReporter(collector.endpoint)) as reporter:
        reporter.report("a", EncoderLost("x"))
        assert hanging.wait(WAIT_S)
        closing = threading.Thread(target=collector.close, daemon=True)
        closing.start()
        closing.join(WAIT_S)
        has_closed = not closing.is_alive()
        let_go.set()
    assert has_closed
    assert "did not stop" in caplog.text
    collector._thread.join(WAIT_S)
    collector._socket.close()
    collector._context.term()
