"""Guards: a death or a cut at any moment of a fetch that gives wrong bytes, two outcomes, or memory never freed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq

from tests.integration.transfer.proxy import Proxy
from transfer import ClientSettings, EmbeddingRef, EncoderLost, FetchRequest, encode

FINGERPRINT = "model@revision"
LARGE = torch.arange(4 * 2**20, dtype=torch.float32).view(4096, 1024)
SMALL = torch.arange(24, dtype=torch.float32).view(6, 4)
QUICK = ClientSettings(liveness_s=1.0)
FAR_S = 200.0
WAIT_S = 60.0
_PROCESS = Path(__file__).with_name("prefill_process.py")


@pytest.fixture
def proxy_to() -> Iterator[Callable[[str], Proxy]]:
    made: list[Proxy] = []

    def start(target: str) -> Proxy:
        made.append(Proxy(target))
        return made[-1]

    yield start
    for proxy in made:
        proxy.close()


@pytest.fixture
def start_prefill() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def start(ref: EmbeddingRef, *channels: str) -> "subprocess.Popen[str]":
        command = [sys.executable, str(_PROCESS), FINGERPRINT, json.dumps(ref.to_dict()), *channels]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=WAIT_S)


def through(ref: EmbeddingRef, proxy: Proxy) -> EmbeddingRef:
    return EmbeddingRef.from_dict(ref.to_dict() | {"endpoints": [proxy.endpoint]})


def test_a_network_cut_while_bytes_flow_ends_the_fetch_and_a_second_way_delivers(bench: Any, proxy_to: Any) -> None:
    server, client = bench.server(), bench.client(QUICK)
    ref = bench.offer(server, LARGE)
    proxy = proxy_to(server.endpoint)
    proxy.max_bytes_back = 6 * 2**20
    assert isinstance(client.fetch(through(ref, proxy), FAR_S).exception(WAIT_S), EncoderLost)
    assert proxy.is_cut.is_set()
    assert torch.equal(client.fetch(ref, FAR_S).result(WAIT_S), LARGE)


def test_a_network_cut_while_a_fetch_waits_ends_it(bench: Any, proxy_to: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client(QUICK)
    ref = bench.announce(server, SMALL)
    proxy = proxy_to(server.endpoint)
    waiting = client.fetch(through(ref, proxy), FAR_S)
    eventually(lambda: server.stats().num_parked == 1)
    proxy.cut()
    assert isinstance(waiting.exception(WAIT_S), EncoderLost)
    # The encoder's own half stays open until its heartbeat ends; what it sends there is lost and harms nobody.
    bench.publish(server, ref, SMALL)
    assert torch.equal(client.fetch(ref, FAR_S).result(WAIT_S), SMALL)


@pytest.mark.parametrize("channel", ["zmq", "shm"])
def test_an_encoder_killed_after_the_fetch_takes_nothing_back(bench: Any, start_encoder: Any, channel: str) -> None:
    encoder, client = start_encoder(channel), bench.client(QUICK, channels=[channel])
    ref = encoder.announce(torch.zeros(300, 512, dtype=torch.bfloat16))
    encoder.publish(ref, 5)
    fetched, in_place = client.fetch(ref, FAR_S).result(WAIT_S), client.fetch_in_place(ref, FAR_S).result(WAIT_S)
    encoder.process.kill()
    encoder.process.wait(WAIT_S)
    client.release(ref)
    expected = torch.randn(300, 512, generator=torch.Generator().manual_seed(5)).bfloat16()
    assert torch.equal(fetched, expected)
    if channel == "shm":
        held = torch.frombuffer(bytearray(in_place.memory), dtype=torch.bfloat16).view(300, 512)
        assert torch.equal(held, expected)
        in_place.close()


def test_an_encoder_killed_while_bytes_flow_gives_no_tensor(bench: Any, start_encoder: Any, proxy_to: Any) -> None:
    encoder, client = start_encoder("zmq"), bench.client(QUICK)
    ref = encoder.announce(LARGE)
    encoder.publish(ref, 5)
    proxy = proxy_to(encoder.endpoint)
    proxy.max_bytes_back = 4 * 2**20
    future = client.fetch(through(ref, proxy), FAR_S)
    assert proxy.is_cut.wait(WAIT_S)
    encoder.process.kill()
    assert isinstance(future.exception(WAIT_S), EncoderLost)


@pytest.mark.parametrize("channel", ["zmq", "shm"])
def test_a_prefill_killed_while_it_fetches_leaves_the_ticket_to_another(
    bench: Any, start_prefill: Any, eventually: Any, channel: str
) -> None:
    server = bench.server(channels=[channel])
    tensor = SMALL.repeat(1000, 1)
    ref = bench.announce(server, tensor)
    prefill = start_prefill(ref, channel)
    assert prefill.stdout.readline() == "asking\n"
    eventually(lambda: server.stats().num_parked == 1, WAIT_S)
    prefill.kill()
    prefill.wait(WAIT_S)
    bench.publish(server, ref, tensor)  # the only encode
    client = bench.client(channels=[channel])
    assert torch.equal(client.fetch(ref, FAR_S).result(WAIT_S), tensor)
    client.release(ref)
    eventually(lambda: server.stats().num_leases == 0)


def test_a_prefill_killed_while_it_holds_a_block_gives_it_back(bench: Any, start_prefill: Any, eventually: Any) -> None:
    server = bench.server(channels=["shm"], arena_bytes=2**20)
    tensor = torch.ones(200, 1024)
    ref = bench.offer(server, tensor)
    prefill = start_prefill(ref, "shm")
    assert [prefill.stdout.readline() for _ in range(2)] == ["asking\n", "held\n"]
    server.release(ref.transfer_id)
    assert server.place(tensor) is None
    prefill.kill()
    prefill.wait(WAIT_S)
    eventually(lambda: server.place(tensor) is not None)


def test_a_reader_that_does_not_read_delays_nobody_and_frees_its_memory_when_it_goes(
    bench: Any, eventually: Any
) -> None:
    server, client = bench.server(), bench.client()
    ref, other = bench.offer(server, LARGE), bench.offer(server, SMALL)
    with zmq.Context() as context:
        reader = context.socket(zmq.DEALER)
        reader.setsockopt(zmq.RCVHWM, 1)
        reader.connect(server.endpoint)
        for number in range(20):
            request = FetchRequest(number, ref.transfer_id, "key", FINGERPRINT, "elsewhere", ("zmq",), FAR_S)
            reader.send(encode(request))
        eventually(lambda: server.stats().num_fetched == 20)
        for _ in range(20):
            assert torch.equal(client.fetch(other, FAR_S).result(WAIT_S), SMALL)
        assert torch.equal(client.fetch(ref, FAR_S).result(WAIT_S), LARGE)
        client.release(ref)
        eventually(lambda: server.stats().bytes_held == SMALL.nbytes)
        reader.close(linger=0)


def test_a_half_open_connection_is_given_up_by_the_encoder(bench: Any, proxy_to: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client(QUICK)
    ref = bench.announce(server, SMALL)
    proxy = proxy_to(server.endpoint)
    waiting = client.fetch(through(ref, proxy), FAR_S)
    eventually(lambda: server.stats().num_parked == 1)
    proxy.cut()
    assert isinstance(waiting.exception(WAIT_S), EncoderLost)

    # The connection goes when its heartbeat has not been answered for ten seconds; an answer after that is counted.
    time.sleep(12)
    server.release(ref.transfer_id)
    eventually(lambda: server.stats().num_unreachable == 1)
