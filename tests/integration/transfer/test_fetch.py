"""Guards, over real sockets: an embedding that arrives changed or never, and a lease that outlives its use."""

import threading
import time
from typing import Any

import pytest
import torch

from transfer import (
    BadMedia,
    Busy,
    ClientSettings,
    DeadlineExceeded,
    EmbeddingExpired,
    EmbeddingNotFound,
    EncoderLost,
    Incompatible,
    LimitExceeded,
    ServerSettings,
)

TENSOR = torch.arange(24, dtype=torch.float32).view(6, 4)
WAIT_S = 30.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_published_embedding_arrives_bit_for_bit(bench: Any, dtype: torch.dtype) -> None:
    tensor = torch.randn(37, 129).to(dtype)
    tensor[0, 0], tensor[1, 1] = float("nan"), -0.0
    server, client = bench.server(), bench.client()
    result = client.fetch(bench.offer(server, tensor), WAIT_S).result(WAIT_S)
    assert result.dtype == dtype and result.shape == tensor.shape
    assert torch.equal(result.view(torch.uint8), tensor.view(torch.uint8))


def test_a_fetch_waits_for_the_embedding(bench: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client()
    ref = bench.announce(server, TENSOR)
    futures = [client.fetch(ref, WAIT_S) for _ in range(3)]
    eventually(lambda: server.stats().num_parked == 3)
    assert not any(future.done() for future in futures)
    bench.publish(server, ref, TENSOR)
    for future in futures:
        assert torch.equal(future.result(WAIT_S), TENSOR)
    eventually(lambda: server.stats().num_parked == 0)
    assert server.stats().num_fetched == 3


def test_control_answers_while_the_encoder_computes(bench: Any) -> None:
    server, client = bench.server(), bench.client()
    ref = bench.offer(server, TENSOR)
    stop = threading.Event()

    def compute() -> None:
        left = torch.randn(512, 512)
        while not stop.is_set():
            left = torch.tanh(left @ left)

    worker = threading.Thread(target=compute)
    worker.start()
    try:
        for _ in range(20):
            assert torch.equal(client.fetch(ref, WAIT_S).result(WAIT_S), TENSOR)
    finally:
        stop.set()
        worker.join()


def test_a_fetch_does_not_release_and_a_release_frees_once(bench: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client()
    ref = bench.offer(server, TENSOR)
    for _ in range(2):
        assert torch.equal(client.fetch(ref, WAIT_S).result(WAIT_S), TENSOR)
    assert server.stats().bytes_held == TENSOR.nbytes
    for _ in range(3):
        client.release(ref)
    eventually(lambda: server.stats().num_leases == 0)
    assert server.stats().bytes_held == 0
    with pytest.raises(EmbeddingExpired):
        client.fetch(ref, WAIT_S).result(WAIT_S)
    server.release(ref.transfer_id)
    assert server.stats().num_released == 1


def test_a_release_while_fetches_wait_ends_them(bench: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client()
    for release in (lambda ref: server.release(ref.transfer_id), client.release):
        ref = bench.announce(server, TENSOR)
        waiting = client.fetch(ref, WAIT_S)
        eventually(lambda: server.stats().num_parked == 1)
        release(ref)
        assert isinstance(waiting.exception(WAIT_S), EmbeddingExpired)
        assert not bench.publish(server, ref, TENSOR)
        assert server.stats().bytes_held == 0


def test_a_failed_item_tells_waiting_and_later_fetches_why(bench: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client()
    for error in (BadMedia("not a picture"), EncoderLost("rank 1 died")):
        ref = bench.announce(server, TENSOR)
        waiting = client.fetch(ref, WAIT_S)
        eventually(lambda: server.stats().num_parked == 1)
        assert server.fail(ref.transfer_id, error)
        for future in (waiting, client.fetch(ref, WAIT_S)):
            raised = future.exception(WAIT_S)
            assert type(raised) is type(error)
            assert str(raised) == str(error)


def test_no_error_text_keeps_its_error_from_arriving(bench: Any) -> None:
    server, client = bench.server(), bench.client()
    for text in ("x" * 1_000_000, "lone surrogate \ud800"):
        ref = bench.announce(server, TENSOR)
        server.fail(ref.transfer_id, BadMedia(text))
        error = client.fetch(ref, WAIT_S).exception(WAIT_S)
        assert isinstance(error, BadMedia) and str(error)[:10] == text[:10]


def test_a_lease_ends_by_itself_before_and_after_it_is_ready(bench: Any, eventually: Any) -> None:
    server, client = bench.server(ServerSettings(lease_s=0.2)), bench.client()
    never_ready = bench.announce(server, TENSOR)
    waiting = client.fetch(never_ready, WAIT_S)
    assert isinstance(waiting.exception(WAIT_S), EmbeddingExpired)
    assert not bench.publish(server, never_ready, TENSOR)
    ready = bench.offer(server, TENSOR)
    eventually(lambda: server.stats().num_leases == 0)
    assert isinstance(client.fetch(ready, WAIT_S).exception(WAIT_S), EmbeddingExpired)
    assert (server.stats().num_expired, server.stats().bytes_held) == (2, 0)


def test_a_renewed_lease_lives_on(bench: Any) -> None:
    server, client = bench.server(ServerSettings(lease_s=1.0)), bench.client()
    renewed_there, renewed_here = bench.offer(server, TENSOR), bench.offer(server, TENSOR)
    for _ in range(15):
        time.sleep(0.1)
        client.renew(renewed_there)
        server.renew(renewed_here.transfer_id)
    for ref in (renewed_there, renewed_here):
        assert torch.equal(client.fetch(ref, WAIT_S).result(WAIT_S), TENSOR)
    client.release(renewed_there)
    client.renew(renewed_there)
    assert isinstance(client.fetch(renewed_there, WAIT_S).exception(WAIT_S), EmbeddingExpired)


def test_an_unknown_transfer_and_another_items_key_are_not_found(bench: Any, make_ref: Any) -> None:
    server, client = bench.server(), bench.client()
    ref = bench.offer(server, TENSOR)
    stranger = type(ref).from_dict(ref.to_dict() | {"item_key": "another item"})
    for wrong in (make_ref("f" * 32, TENSOR, server.endpoint), stranger):
        assert isinstance(client.fetch(wrong, WAIT_S).exception(WAIT_S), EmbeddingNotFound)


def test_the_fetchers_own_time_ends_its_wait(bench: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client()
    ref = bench.announce(server, TENSOR)
    assert isinstance(client.fetch(ref, 0.3).exception(WAIT_S), DeadlineExceeded)
    assert isinstance(client.fetch(ref, 0.0).exception(WAIT_S), DeadlineExceeded)
    eventually(lambda: server.stats().num_parked == 0)
    bench.publish(server, ref, TENSOR)
    assert torch.equal(client.fetch(ref, WAIT_S).result(WAIT_S), TENSOR)


def test_the_server_bounds_a_wait_that_the_fetcher_does_not(bench: Any) -> None:
    server, client = bench.server(ServerSettings(max_park_s=0.2)), bench.client()
    ref = bench.announce(server, TENSOR)
    assert isinstance(client.fetch(ref, WAIT_S).exception(WAIT_S), DeadlineExceeded)


def test_models_that_differ_are_incompatible_on_either_side(bench: Any) -> None:
    server = bench.server()
    ref = bench.offer(server, TENSOR)
    other_worker = bench.client(fingerprint="another model")
    assert isinstance(other_worker.fetch(ref, WAIT_S).exception(WAIT_S), Incompatible)
    forged = type(ref).from_dict(ref.to_dict() | {"fingerprint": "another model"})
    assert isinstance(other_worker.fetch(forged, WAIT_S).exception(WAIT_S), Incompatible)
    assert server.stats().num_fetched == 0


def test_limits_answer_busy_and_too_large(bench: Any, eventually: Any) -> None:
    server = bench.server(ServerSettings(max_leases=2, max_parked=1))
    client = bench.client(ClientSettings(max_embedding_bytes=TENSOR.nbytes))
    ref = bench.announce(server, TENSOR)
    first = client.fetch(ref, WAIT_S)
    eventually(lambda: server.stats().num_parked == 1)
    assert isinstance(client.fetch(ref, WAIT_S).exception(WAIT_S), Busy)
    large = bench.announce(server, torch.zeros(7, 4))
    assert isinstance(client.fetch(large, WAIT_S).exception(WAIT_S), LimitExceeded)
    with pytest.raises(Busy):
        bench.announce(server, TENSOR)
    bench.publish(server, ref, TENSOR)
    assert torch.equal(first.result(WAIT_S), TENSOR)


def test_what_was_announced_is_what_may_be_published(bench: Any) -> None:
    server = bench.server()
    ref = bench.announce(server, TENSOR)
    buffer = memoryview(TENSOR.numpy()).cast("B")
    for shape, dtype, row_start in [
        ((6, 5), "float32", 0),
        ((7, 4), "float32", 0),
        ((5, 4), "float32", 0),
        ((24,), "float32", 0),
        ((6, 4), "bfloat16", 0),
        ((6, 4), "float32", 1),
        ((6, 4), "float32", -1),
    ]:
        with pytest.raises(ValueError):
            server.publish(ref.transfer_id, buffer, shape, dtype, row_start)
    with pytest.raises(ValueError, match="never announced"):
        server.publish("f" * 32, buffer, (6, 4), "float32")
    with pytest.raises(ValueError, match="announced before"):
        server.announce(ref.transfer_id, "key", 6, 4, "float32")
    with pytest.raises(ValueError):
        server.announce("e" * 32, "key", 0, 4, "float32")
    assert bench.publish(server, ref, TENSOR)
    with pytest.raises(ValueError, match="not announced"):
        bench.publish(server, ref, TENSOR)


def test_ranks_that_hold_parts_give_one_embedding(bench: Any, make_ref: Any, eventually: Any) -> None:
    ranks, client = [bench.server() for _ in range(3)], bench.client()
    ref = make_ref("a" * 32, TENSOR, *(rank.endpoint for rank in ranks))
    for rank in ranks:
        rank.announce(ref.transfer_id, ref.item_key, 6, 4, "float32")
    future = client.fetch(ref, WAIT_S)
    for rank, (start, end) in zip(ranks, [(0, 4), (4, 6), (6, 6)], strict=True):
        assert not future.done()
        part = TENSOR[start:end]
        rank.publish(ref.transfer_id, memoryview(part.numpy().tobytes()), tuple(part.shape), "float32", start)
    assert torch.equal(future.result(WAIT_S), TENSOR)
    client.release(ref)
    eventually(lambda: all(rank.stats().num_leases == 0 for rank in ranks))


def test_one_failed_rank_fails_the_fetch(bench: Any, make_ref: Any) -> None:
    ranks, client = [bench.server() for _ in range(2)], bench.client()
    ref = make_ref("a" * 32, TENSOR, *(rank.endpoint for rank in ranks))
    for rank in ranks:
        rank.announce(ref.transfer_id, ref.item_key, 6, 4, "float32")
    future = client.fetch(ref, WAIT_S)
    ranks[0].publish(ref.transfer_id, memoryview(TENSOR[:3].numpy().tobytes()), (3, 4), "float32", 0)
    ranks[1].fail(ref.transfer_id, EncoderLost("rank 1 died"))
    assert isinstance(future.exception(WAIT_S), EncoderLost)


def test_checksums_pass_over_the_wire(bench: Any) -> None:
    server, client = bench.server(ServerSettings(checksum=True)), bench.client()
    tensor = torch.randn(600, 1024)
    assert torch.equal(client.fetch(bench.offer(server, tensor), WAIT_S).result(WAIT_S), tensor)


def test_a_large_embedding_arrives_whole_beside_small_ones(bench: Any) -> None:
    server, client = bench.server(), bench.client()
    large = torch.randint(0, 2**15, (4096, 4096), dtype=torch.int32).view(torch.float32)
    assert large.nbytes == 64 * 1024 * 1024
    futures = [(client.fetch(bench.offer(server, tensor), WAIT_S), tensor) for tensor in (large, TENSOR, large[:3])]
    for future, tensor in futures:
        assert torch.equal(future.result(WAIT_S).view(torch.int32), tensor.view(torch.int32))


def test_two_hundred_fetches_at_once_all_end_with_their_own_embedding(bench: Any, eventually: Any) -> None:
    servers, clients = [bench.server() for _ in range(2)], [bench.client() for _ in range(4)]
    tensors = [torch.full((1 + number % 7, 256), float(number)).bfloat16() for number in range(200)]
    refs = [bench.announce(servers[number % 2], tensor) for number, tensor in enumerate(tensors)]
    futures = [clients[number % 4].fetch(ref, WAIT_S) for number, ref in enumerate(refs)]
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1)).tolist()
    for number in order:
        assert bench.publish(servers[number % 2], refs[number], tensors[number])
    for number, future in enumerate(futures):
        assert torch.equal(future.result(WAIT_S), tensors[number])
        clients[number % 4].release(refs[number])
    eventually(lambda: all(server.stats().num_leases == 0 for server in servers))
    assert sum(server.stats().num_fetched for server in servers) == 200
    assert sum(server.stats().bytes_held for server in servers) == 0


def test_a_cancelled_fetch_disturbs_nobody(bench: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client()
    ref = bench.announce(server, TENSOR)
    given_up, kept = client.fetch(ref, WAIT_S), client.fetch(ref, WAIT_S)
    eventually(lambda: server.stats().num_parked == 2)
    assert given_up.cancel()
    bench.publish(server, ref, TENSOR)
    assert torch.equal(kept.result(WAIT_S), TENSOR)
    eventually(lambda: client.num_pending == 0)


def test_memory_of_a_released_embedding_is_given_back(bench: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client()
    freed = threading.Event()

    class Owned(bytearray):
        def __del__(self) -> None:
            freed.set()

    ref = bench.announce(server, TENSOR)
    server.publish(ref.transfer_id, memoryview(Owned(TENSOR.numpy().tobytes())), (6, 4), "float32")
    assert torch.equal(client.fetch(ref, WAIT_S).result(WAIT_S), TENSOR)
    assert not freed.is_set()
    client.release(ref)
    eventually(freed.is_set)


def test_a_fetcher_that_goes_away_leaves_nothing_parked(bench: Any, eventually: Any) -> None:
    server, client = bench.server(), bench.client()
    ref = bench.announce(server, TENSOR)
    client.fetch(ref, 0.5)
    eventually(lambda: server.stats().num_parked == 1)
    client.close()
    eventually(lambda: server.stats().num_parked == 0)
    started = time.monotonic()
    bench.publish(server, ref, TENSOR)
    assert torch.equal(bench.client().fetch(ref, WAIT_S).result(WAIT_S), TENSOR)
    assert time.monotonic() - started < WAIT_S


@pytest.mark.parametrize("num_tokens", [4, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_placed_is_what_arrives(bench: Any, make_ref: Any, num_tokens: int, dtype: torch.dtype) -> None:
    server, client = bench.server(channels=["shm"], arena_bytes=8 * 2**20), bench.client(channels=["shm"])
    for tensor in (torch.randn(num_tokens, 1024).to(dtype), torch.randn(num_tokens, 2048).to(dtype)[:, ::2]):
        ref = bench.announce(server, tensor)
        placed = server.place(tensor)
        assert server.publish(ref.transfer_id, placed.memory, placed.shape, placed.dtype)
        assert torch.equal(client.fetch(ref, WAIT_S).result(WAIT_S), tensor)
