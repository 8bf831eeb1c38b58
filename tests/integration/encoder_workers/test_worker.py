"""The encoder worker with a real checkpoint, and real clients that fetch from it.

Guards: tickets that wait for the encoder, embeddings that are not the encoder's own, work done twice or for nobody.
"""

import asyncio
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from configs import TriptychConfig, embedding_fingerprint
from encoder_workers import Embedding, Media, load_encoder
from encoder_workers.given_embeddings import pack_given
from encoder_workers.worker import EncoderWorker
from transfer import (
    Busy,
    ClientSettings,
    Closed,
    CurveKey,
    EmbeddingClient,
    EmbeddingExpired,
    EncodeReply,
    EncodeRequest,
    EncoderLost,
    EncodeTicket,
    MediaItem,
    receive_channels,
    write_key_file,
)

WAIT_S = 60.0
LONG_S = 300.0
HOLD_S = 1.0
"""How long a batch waits for more items, where a test needs something to happen before it is encoded."""


class Service:
    """A worker and a client of it."""

    def __init__(self, config: TriptychConfig, client: ClientSettings | None = None) -> None:
        self.worker = EncoderWorker(config, "127.0.0.1")
        channels = receive_channels(config.transfer.channels)
        self.client = EmbeddingClient(embedding_fingerprint(config), client, channels)

    async def encode(
        self, *media: bytes, tenant: str = "", timeout_s: float = LONG_S, request_id: str = "request"
    ) -> EncodeReply:
        items = tuple(MediaItem("image", data) for data in media)
        return await self.worker.encode(EncodeRequest(request_id, items, (), tenant, timeout_s))

    async def ticket(self, media: bytes, **options: Any) -> EncodeTicket:
        (ticket,) = (await self.encode(media, **options)).tickets
        assert ticket is not None
        return ticket

    async def fetch(self, ticket: EncodeTicket) -> torch.Tensor:
        return await asyncio.wrap_future(self.client.fetch(ticket.ref(), WAIT_S))

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "did not happen in time"
            await asyncio.sleep(0.005)

    def close(self) -> None:
        self.client.close()
        self.worker.close()
        self.worker.close()


@pytest.fixture
def settings(checkpoint: Path) -> Callable[..., TriptychConfig]:
    def make(encoder: dict[str, Any] | None = None, **transfer: Any) -> TriptychConfig:
        content = {"encoder": encoder or {}, "decode": {}, "transfer": {"arena_bytes": "4 MiB"} | transfer}
        content["limits"] = {"allowed_media_hosts": ["127.0.0.1"]}
        return TriptychConfig.model_validate({"model": str(checkpoint), "dtype": "float32"} | content)

    return make


@pytest.fixture
def serve(settings: Callable[..., TriptychConfig]) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def start(encoder: dict[str, Any] | None = None, **transfer: Any) -> Service:
        made.append(Service(settings(encoder, **transfer)))
        return made[-1]

    ours = f"triptych-arena-{os.getpid()}-*"  # other services may run on this machine
    before = set(Path("/dev/shm").glob(ours))
    yield start
    for service in made:
        service.close()
    assert set(Path("/dev/shm").glob(ours)) <= before


@pytest.mark.parametrize("channels", [("shm",), ("zmq",), ("shm", "zmq")])
async def test_what_is_fetched_is_what_the_encoder_computes(
    serve: Any, picture: Any, checkpoint: Path, channels: tuple[str, ...]
) -> None:
    service = serve({}, channels=channels, checksum=True)
    media = [picture(seed, 56 + 28 * seed, 112) for seed in range(3)]
    reply = await service.encode(*media)
    encoder = load_encoder(checkpoint, dtype="float32")
    for data, ticket in zip(media, reply.tickets, strict=True):
        (expected,) = encoder.encode([Media("image", data)])
        assert isinstance(expected, Embedding)
        embedding = await service.fetch(ticket)
        assert embedding.shape == (ticket.num_tokens, ticket.width)
        torch.testing.assert_close(embedding, expected.tensor, rtol=1e-5, atol=1e-5)
    encoder.close()


async def test_an_item_alone_in_its_pass_is_the_same_to_the_bit(serve: Any, picture: Any, checkpoint: Path) -> None:
    service = serve()
    encoder = load_encoder(checkpoint, dtype="float32")
    (expected,) = encoder.encode([Media("image", picture(7))])
    assert isinstance(expected, Embedding)
    assert torch.equal(await service.fetch(await service.ticket(picture(7))), expected.tensor)


async def test_a_group_of_ranks_serves_what_one_rank_does(serve: Any, picture: Any, checkpoint: Path) -> None:
    """Through tickets and fetches, one large picture and small ones; the replica's end is its ranks' end."""
    service = serve({"ranks_per_replica": 2})
    media = [picture(0, 448, 448), *(picture(seed, 56, 28 * seed) for seed in range(1, 4))]
    reply = await service.encode(*media)
    encoder = load_encoder(checkpoint, dtype="float32")
    for data, ticket in zip(media, reply.tickets, strict=True):
        (expected,) = encoder.encode([Media("image", data)])
        assert isinstance(expected, Embedding)
        embedding = await service.fetch(ticket)
        assert (embedding - expected.tensor).abs().max() < 1e-5 * expected.tensor.abs().max()
    service.worker.check_health()
    encoder.close()


async def test_the_ticket_is_there_before_the_embedding(serve: Any, picture: Any) -> None:
    service = serve({"max_batch_wait_s": HOLD_S})
    ticket = await service.ticket(picture(1))
    assert service.worker.stats().num_encoded == 0
    assert (await service.fetch(ticket)).shape == (ticket.num_tokens, ticket.width)
    assert service.worker.stats().num_encoded == 1


async def test_a_hundred_requests_of_one_picture_are_one_encode(serve: Any, picture: Any) -> None:
    service = serve()
    tickets = await asyncio.gather(*(service.ticket(picture(1)) for _ in range(100)))
    assert len({ticket.transfer_id for ticket in tickets}) == 100
    assert len({ticket.item_key for ticket in tickets}) == 1
    embeddings = await asyncio.gather(*(service.fetch(ticket) for ticket in tickets))
    assert service.worker.stats().num_encoded == 1
    assert all(torch.equal(embedding, embeddings[0]) for embedding in embeddings)
    for ticket in tickets:
        service.client.release(ticket.ref())
    await service.until(lambda: service.worker.stats().num_leases == 0)


async def test_a_picture_seen_before_costs_no_encoder_work(serve: Any, picture: Any) -> None:
    service = serve()
    first = await service.fetch(await service.ticket(picture(1)))
    again = await service.fetch(await service.ticket(picture(1)))
    assert torch.equal(first, again)
    stats = service.worker.stats()
    assert (stats.num_encoded, stats.num_cache_hits, stats.cached_bytes) == (1, 1, first.nbytes)


async def _encode_in_turn(service: Service, media: list[bytes], *, release: bool) -> int:
    """One after the other, all for one request; returns the bytes of their embeddings."""
    num_bytes = 0
    for data in media:
        ticket = await service.ticket(data)
        num_bytes += (await service.fetch(ticket)).nbytes
        if release:
            service.client.release(ticket.ref())
            await service.until(lambda: service.worker.stats().num_leases == 0)
    return num_bytes


async def test_without_an_arena_the_cache_keeps_what_its_budget_allows(serve: Any, picture: Any) -> None:
    service = serve({}, channels=("zmq",))
    media = [picture(seed) for seed in range(5)]
    num_bytes = await _encode_in_turn(service, media, release=True)
    assert service.worker.stats().cached_bytes == num_bytes
    await _encode_in_turn(service, media, release=True)
    assert service.worker.stats().num_encoded == len(media)


async def test_an_arena_full_of_leases_costs_the_cache_nothing(serve: Any, picture: Any) -> None:
    """To forget what is leased makes no room; what then finds none is kept in ordinary memory."""
    service = serve({}, arena_bytes=2**20)
    num_bytes = await _encode_in_turn(service, [picture(seed, 448, 448) for seed in range(12)], release=False)
    assert num_bytes > 2**20
    assert service.worker.stats().cached_bytes == num_bytes


async def test_what_only_the_cache_keeps_makes_room_in_the_arena(serve: Any, picture: Any) -> None:
    service = serve({}, arena_bytes=2**20, channels=("shm",))
    media = [picture(seed, 448, 448) for seed in range(12)]
    num_bytes = await _encode_in_turn(service, media, release=True)
    assert 2**19 < service.worker.stats().cached_bytes < 2**20 < num_bytes
    await service.ticket(media[-1])
    assert service.worker.stats().num_cache_hits == 1


def test_a_cached_part_of_a_pass_does_not_keep_the_others(serve: Any) -> None:
    whole = torch.zeros(64, 8)
    kept = serve({}, channels=("zmq",)).worker._to_host(whole[:1])
    whole.fill_(1.0)
    assert not any(kept.memory)


async def test_tenants_share_nothing(serve: Any, picture: Any) -> None:
    service = serve()
    tickets = [await service.ticket(picture(1), tenant=tenant) for tenant in ("a", "b")]
    one, two = [await service.fetch(ticket) for ticket in tickets]
    assert tickets[0].item_key != tickets[1].item_key
    assert service.worker.stats().num_encoded == 2
    assert torch.equal(one, two)


async def test_an_embedding_that_the_client_sends_is_served_without_encoding(
    serve: Any, picture: Any, checkpoint: Path
) -> None:
    """And where the settings do not admit them, it is no picture."""
    encoder = load_encoder(checkpoint, dtype="float32")
    (own,) = encoder.encode([Media("image", picture(1))])
    encoder.close()
    assert isinstance(own, Embedding)
    file = io.BytesIO()
    torch.save(own.tensor, file)
    grid = own.metadata.array("image_grid_thw").values
    sent = pack_given({"image_embeds": file.getvalue(), "image_grid_thw": grid})
    service = serve({"enable_mm_embeds": True})
    tickets = [await service.ticket(sent), await service.ticket(sent)]
    assert tickets[0].metadata == own.metadata.prompt
    assert tickets[0].item_key == tickets[1].item_key
    for ticket in tickets:
        assert torch.equal(await service.fetch(ticket), own.tensor)
        service.client.release(ticket.ref())
    bad = await service.encode(sent, pack_given({"image_embeds": file.getvalue(), "image_grid_thw": [1, 2, 2]}))
    assert [failure.index for failure in bad.failures] == [1]
    assert "rows; with what is sent beside it, it must have 1" in bad.failures[0].message
    assert (service.worker.stats().num_encoded, service.worker.stats().num_failed) == (0, 0)
    (refused,) = (await serve({}).encode(sent)).failures
    assert "not an image in a known format" in refused.message


async def test_at_its_limit_a_replica_says_busy_and_begins_nothing(serve: Any, picture: Any) -> None:
    service = serve({"max_pending_items": 2})
    tickets = [await service.ticket(picture(seed)) for seed in range(2)]
    with pytest.raises(Busy):
        await service.encode(picture(2))
    service.client.release(tickets[0].ref())
    await service.until(lambda: service.worker.stats().num_leases == 1)
    with pytest.raises(Busy):
        await service.encode(picture(2), picture(3))
    assert service.worker.stats().num_leases == 1
    assert (await service.fetch(await service.ticket(picture(2)))).numel()


async def test_an_item_that_nobody_waits_for_any_more_is_not_encoded(serve: Any, picture: Any) -> None:
    service = serve({"max_batch_wait_s": HOLD_S})
    unwanted, wanted = await service.ticket(picture(1)), await service.ticket(picture(2))
    service.client.release(unwanted.ref())
    await service.fetch(wanted)
    await service.until(lambda: service.worker.stats().num_pending == 0)
    assert service.worker.stats().num_encoded == 1
    assert service.worker.stats().num_leases == 1
    await service.fetch(await service.ticket(picture(1)))


async def test_a_cancelled_call_leaves_no_leases(serve: Any, picture: Any, web: Any) -> None:
    """One item has its ticket, the other is still on its way."""
    service = serve()
    slow = web.stream("/slow", b"x", 600, pause_s=0.05)
    items = (MediaItem("image", picture(1)), MediaItem("image", url=slow))
    call = asyncio.ensure_future(service.worker.encode(EncodeRequest("request", items, (), "", LONG_S)))
    await service.until(lambda: service.worker.stats().num_encoded == 1 and "/slow" in web.hits)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert service.worker.stats().num_leases == 0


async def test_an_item_that_cannot_be_begun_leaves_no_lease(serve: Any, picture: Any) -> None:
    service = serve()
    service.worker._batcher.close()
    (failure,) = (await service.encode(picture(1))).failures
    assert failure.code == Closed.code
    stats = service.worker.stats()
    assert (stats.num_leases, stats.num_pending) == (0, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_tower_thread_is_no_health(serve: Any, picture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    service = serve()
    service.worker.check_health()

    def broken(*_: object) -> None:
        raise AssertionError("a defect")

    monkeypatch.setattr(service.worker._batcher, "_encode", broken)
    await service.ticket(picture(1))
    service.worker._batcher._thread.join(WAIT_S)
    with pytest.raises(EncoderLost, match="thread has died"):
        service.worker.check_health()


async def test_an_item_that_one_of_two_still_wants_is_encoded(serve: Any, picture: Any) -> None:
    service = serve({"max_batch_wait_s": HOLD_S})
    leaving, staying = await service.ticket(picture(1)), await service.ticket(picture(1))
    service.client.release(leaving.ref())
    assert (await service.fetch(staying)).numel()


async def test_a_bad_item_fails_alone(serve: Any, picture: Any) -> None:
    service = serve()
    reply = await service.encode(picture(1), b"not a picture", picture(2), picture(1)[:-40])
    assert [failure.index for failure in reply.failures] == [1]
    assert reply.failures[0].code == "bad_media"
    for index in (0, 2):
        assert (await service.fetch(reply.tickets[index])).numel()
    # Its header is whole, so the fault shows only when its pixels are decoded.
    with pytest.raises(ValueError):
        await service.fetch(reply.tickets[3])


async def test_a_lease_lasts_while_its_request_may_ask_and_then_lease_s(serve: Any, picture: Any) -> None:
    service = serve({"max_batch_wait_s": HOLD_S}, lease_s=HOLD_S / 4)
    fetched, left = await service.ticket(picture(1)), await service.ticket(picture(2))
    assert (await service.fetch(fetched)).numel()
    await service.until(lambda: service.worker.stats().num_leases == 0)
    with pytest.raises(EmbeddingExpired):
        await service.fetch(left)
    shorter = await service.ticket(picture(3), timeout_s=HOLD_S / 4)
    await service.until(lambda: service.worker.stats().num_pending == 0)
    assert service.worker.stats().num_encoded == 2
    with pytest.raises(EmbeddingExpired):
        await service.fetch(shorter)


async def test_close_ends_what_waits_with_a_typed_error(serve: Any, picture: Any) -> None:
    service = serve({"max_batch_wait_s": HOLD_S})
    waiting = service.client.fetch((await service.ticket(picture(1))).ref(), WAIT_S)
    service.worker.close()
    assert isinstance(waiting.exception(WAIT_S), EncoderLost)


async def test_embeddings_that_find_no_room_in_the_arena_go_over_zmq(serve: Any, picture: Any) -> None:
    service = serve({}, arena_bytes=2**20)
    media = [picture(seed, 448, 448) for seed in range(12)]
    reply = await service.encode(*media)
    embeddings = [await service.fetch(ticket) for ticket in reply.tickets]
    assert sum(embedding.nbytes for embedding in embeddings) > 2**20
    assert len({embedding.sum().item() for embedding in embeddings}) == 12


async def test_a_full_arena_refuses_other_requests_before_anything_is_encoded(serve: Any, picture: Any) -> None:
    service = serve({}, arena_bytes=2**20)
    media = [picture(seed, 448, 448) for seed in range(12)]
    reply = await service.encode(*media[:-1], request_id="first")
    assert sum(ticket.expected_bytes for ticket in reply.tickets) > 2**20
    for ticket in reply.tickets:
        assert (await service.fetch(ticket)).numel()
    (refused,) = (await service.encode(media[-1], request_id="second")).failures
    assert refused.code == Busy.code
    await service.until(lambda: service.worker.stats().num_pending == 0)
    assert service.worker.stats().num_encoded == len(media) - 1
    for ticket in reply.tickets:
        service.client.release(ticket.ref())
    await service.until(lambda: service.worker.stats().num_leases == 0)
    (ticket,) = (await service.encode(media[-1], request_id="second")).tickets
    assert (await service.fetch(ticket)).numel()


async def test_only_clients_with_the_key_are_answered(settings: Any, picture: Any, tmp_path: Path) -> None:
    file = tmp_path / "key"
    write_key_file(file)
    config = settings({}, curve_key_file=str(file))
    service = Service(config, ClientSettings(curve=CurveKey.from_secret(file.read_text().strip())))
    stranger = EmbeddingClient(embedding_fingerprint(config), ClientSettings(liveness_s=1.0))
    ticket = await service.ticket(picture(1))
    assert (await service.fetch(ticket)).numel()
    assert isinstance(stranger.fetch(ticket.ref(), WAIT_S).exception(WAIT_S), EncoderLost)
    stranger.close()
    service.close()


def test_other_machines_are_not_answered_without_a_key(settings: Any) -> None:
    with pytest.raises(ValueError, match=r"triptych keygen.*transfer\.curve_key_file.*insecure: true"):
        EncoderWorker(settings({}), "192.0.2.1")
    with pytest.raises(ValueError, match=r"triptych keygen"):
        EncoderWorker(settings({}, bind_host="192.0.2.1"), "127.0.0.1")


def test_an_arena_that_does_not_fit_says_what_to_change(settings: Any) -> None:
    with pytest.raises(ValueError, match=r"transfer\.arena_bytes.*--shm-size.*leave shm out of transfer\.channels"):
        EncoderWorker(settings({}, arena_bytes=1 << 60), "127.0.0.1")
