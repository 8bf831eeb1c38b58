"""Guards: a fetch that hangs when its encoder dies, freezes, was never there, or either end closes."""

import os
import signal
import socket
import threading
from typing import Any

import pytest
import torch

from transfer import Closed, DeadlineExceeded, EmbeddingRef, EncoderLost, ProtocolError

TENSOR = torch.zeros(6, 4)
FAR_S = 200.0
"""The fetch's own deadline: an answer within WAIT_S shows that something else ended it."""
WAIT_S = 60.0


def test_embeddings_arrive_from_another_process(bench: Any, start_encoder: Any) -> None:
    encoder, client = start_encoder(), bench.client()
    ref = encoder.announce(torch.zeros(300, 512, dtype=torch.bfloat16))
    future = client.fetch(ref, FAR_S)
    encoder.publish(ref, 7)
    assert torch.equal(future.result(WAIT_S), _expected(ref, 7))
    encoder.tell("stop")


def _expected(ref: Any, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ref.num_tokens, ref.width, generator=generator).bfloat16()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_frozen_encoder_ends_its_fetches_long_before_their_deadline(
    bench: Any, start_encoder: Any, how: signal.Signals
) -> None:
    doomed, healthy, client = start_encoder(), start_encoder(), bench.client()
    lost = [client.fetch(doomed.announce(TENSOR), FAR_S) for _ in range(5)]
    ref = healthy.announce(torch.zeros(5, 8, dtype=torch.bfloat16))
    kept = client.fetch(ref, FAR_S)
    with pytest.raises(TimeoutError):
        lost[0].result(0.5)
    os.kill(doomed.process.pid, how)
    for future in lost:
        assert isinstance(future.exception(WAIT_S), EncoderLost)
    assert not kept.done()
    healthy.publish(ref, 3)
    assert torch.equal(kept.result(WAIT_S), _expected(ref, 3))


def test_a_dead_port_is_noticed_at_once(bench: Any, make_ref: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    client = bench.client()
    ref = make_ref("a" * 32, TENSOR, f"tcp://127.0.0.1:{port}")
    for _ in range(3):
        client.release(ref)
        assert isinstance(client.fetch(ref, FAR_S).exception(WAIT_S), EncoderLost)


def test_a_port_that_never_answers_is_noticed(bench: Any, make_ref: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ref = make_ref("a" * 32, TENSOR, f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        assert isinstance(bench.client().fetch(ref, FAR_S).exception(WAIT_S), EncoderLost)


def test_an_address_that_is_none_is_a_typed_error(bench: Any, make_ref: Any) -> None:
    client = bench.client()
    ref = make_ref("a" * 32, TENSOR, "tcp://no-such-host.invalid:1")
    client.release(ref)
    assert isinstance(client.fetch(ref, FAR_S).exception(WAIT_S), EncoderLost)
    for endpoint in ("nonsense", "tcp://127.0.0.1:notaport", "tcp://127.0.0.1:99999", "tcp://\ud800:1", "tcp://:1"):
        with pytest.raises(ProtocolError, match="endpoint"):
            EmbeddingRef.from_dict(ref.to_dict() | {"endpoints": [endpoint]})


def test_a_closing_encoder_answers_what_waits(bench: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client()
    futures = [client.fetch(bench.announce(server, TENSOR), FAR_S) for _ in range(3)]
    eventually(lambda: server.stats().num_parked == 3)
    server.close()
    for future in futures:
        error = future.exception(WAIT_S)
        assert isinstance(error, EncoderLost) and "shutting down" in str(error)
    server.close()
    with pytest.raises(Closed):
        bench.announce(server, TENSOR)


def test_calls_after_close_are_harmless(bench: Any) -> None:
    server, client = bench.server(), bench.client()
    ref = bench.announce(server, TENSOR)
    server.close()
    assert not bench.publish(server, ref, TENSOR)
    assert not server.fail(ref.transfer_id, EncoderLost("late"))
    server.release(ref.transfer_id)
    client.close()
    client.release(ref)
    client.close()
    assert isinstance(client.fetch(ref, FAR_S).exception(WAIT_S), Closed)


def test_a_closing_client_resolves_every_future(bench: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client()
    futures = [client.fetch(bench.announce(server, TENSOR), FAR_S) for _ in range(20)]
    eventually(lambda: server.stats().num_parked > 0)
    racing: list[Any] = []

    def keep_asking() -> None:
        for _ in range(2000):
            racing.append(client.fetch(bench.announce(server, TENSOR), FAR_S))
            if racing[-1].done():
                return

    asker = threading.Thread(target=keep_asking)
    asker.start()
    client.close()
    asker.join(WAIT_S)
    for future in [*futures, *racing]:
        assert isinstance(future.exception(WAIT_S), Closed)
    assert client.num_pending == 0


def test_a_release_just_before_close_still_leaves(bench: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client()
    ref = bench.offer(server, TENSOR)
    assert torch.equal(client.fetch(ref, FAR_S).result(WAIT_S), TENSOR)
    client.release(ref)
    client.close()
    eventually(lambda: server.stats().num_leases == 0)


def test_an_encoder_that_came_back_on_the_same_port_is_reached_again(bench: Any, make_ref: Any) -> None:
    client = bench.client()
    first = bench.server()
    ref = bench.announce(first, TENSOR)
    assert isinstance(client.fetch(ref, 0.2).exception(WAIT_S), DeadlineExceeded)
    first.close()
    assert isinstance(client.fetch(ref, FAR_S).exception(WAIT_S), EncoderLost)
    second = bench.server()
    assert torch.equal(client.fetch(bench.offer(second, TENSOR), FAR_S).result(WAIT_S), TENSOR)
