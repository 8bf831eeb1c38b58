"""The pipeline: retries where they may happen, streams that go on elsewhere, every lease given up exactly once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence

import pytest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from cluster.deadline import Deadline
from cluster.leases import RequestLeases
from cluster.pipeline import Pipeline
from cluster.request import AskedTickets, Generation, RequestContext, TicketedItem
from cluster.trace import RequestTrace
from llm_workers.messages import DecodeRequest, GenerateOptions, KVParams, PrefillRequest, PrefillResult, Prompt
from transfer import (
    BadMedia,
    Busy,
    EmbeddingRef,
    EncodeReply,
    EncodeRequest,
    EncoderLost,
    EncodeTicket,
    ItemFailure,
    MediaItem,
    Modality,
    QueueFull,
    TriptychError,
    WorkerLost,
)

Script = Sequence[TriptychError | None]
"""One entry per call: the error that it ends with, or None for success."""


def _output(text: str, *, finished: bool) -> RequestOutput:
    completion = CompletionOutput(0, text, [1], None, None, finish_reason="stop" if finished else None)
    return RequestOutput("r", None, [1], None, [completion], finished)


def _streamed(*, seed: int | None = None) -> SamplingParams:
    return SamplingParams(max_tokens=8, seed=seed, output_kind=RequestOutputKind.DELTA)


class ScriptedEncoder:
    """Gives tickets, and fails the calls that its script says."""

    def __init__(self, script: Script = ()) -> None:
        self.script = list(script)
        self.num_tickets = 0
        self.num_under_way = 0
        self.most_under_way = 0

    async def encode(self, request: EncodeRequest) -> EncodeReply:
        self.num_under_way += 1
        self.most_under_way = max(self.most_under_way, self.num_under_way)
        try:
            await asyncio.sleep(0)
            return self._reply(request)
        finally:
            self.num_under_way -= 1

    def _reply(self, request: EncodeRequest) -> EncodeReply:
        error = self.script.pop(0) if self.script else None
        if isinstance(error, BadMedia):
            return EncodeReply(request.request_id, (None,), (ItemFailure(0, error.code, error.message),))
        if error is not None:
            raise error
        self.num_tickets += 1
        (media,) = request.items
        ticket = EncodeTicket(
            item_key=f"key-{media.url}",
            modality=media.modality,
            num_tokens=2,
            width=4,
            dtype="float32",
            layout="main",
            metadata=(),
            transfer_id=f"transfer-{self.num_tickets}",
            endpoints=("tcp://127.0.0.1:1",),
            expected_bytes=32,
            fingerprint="f",
        )
        return EncodeReply(request.request_id, (ticket,), ())


class ScriptedPrefill:
    """Remembers which tokens and which transfers each call was given; gives first tokens if told so."""

    def __init__(self, script: Script = (), *, gives_first_token: bool = False) -> None:
        self.script = list(script)
        self.gives_first_token = gives_first_token
        self.ends_answers = False
        self.transfers: list[list[str]] = []
        self.prompts: list[tuple[list[int], int]] = []

    async def prefill(self, request: PrefillRequest) -> PrefillResult:
        self.prompts.append((request.prompt.token_ids, request.num_given_tokens))
        self.transfers.append([ref.transfer_id for ref in request.embeddings])
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error
        cache = {"cache": len(self.transfers)}
        if self.gives_first_token:
            return PrefillResult(cache, _output("p", finished=self.ends_answers), gives_first_token=True)
        return PrefillResult(cache, _output("", finished=True))


class ScriptedDecode:
    """Yields two outputs; an error of its script comes before them, one of `late` between, one of `last` after them.

    `cuts`: of one call each, how many outputs it yields before its stream just ends; `on_output` is called before each.
    """

    def __init__(
        self,
        script: Script = (),
        late: Script = (),
        last: Script = (),
        cuts: Sequence[int] = (),
        on_output: Callable[[], None] = lambda: None,
    ) -> None:
        self.script = list(script)
        self.late = list(late)
        self.last = list(last)
        self.cuts = list(cuts)
        self.on_output = on_output
        self.requests: list[DecodeRequest] = []
        self.released: list[KVParams] = []

    async def decode(self, request: DecodeRequest) -> AsyncGenerator[RequestOutput, None]:
        self.requests.append(request)
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error
        cut = self.cuts.pop(0) if self.cuts else 2
        if cut == 0:
            return
        self.on_output()
        yield _output("a", finished=False)
        if cut == 1:
            return
        late = self.late.pop(0) if self.late else None
        if late is not None:
            raise late
        self.on_output()
        yield _output("b", finished=True)
        last = self.last.pop(0) if self.last else None
        if last is not None:
            raise last

    async def release_kv(self, request_id: str, kv_params: KVParams, timeout_s: float) -> None:
        self.released.append(kv_params)


class CountedLeases:
    """Counts what is said of each lease."""

    def __init__(self) -> None:
        self.released: Counter[str] = Counter()
        self.renewed: Counter[str] = Counter()

    def release(self, ref: EmbeddingRef) -> None:
        self.released[ref.transfer_id] += 1

    def renew(self, ref: EmbeddingRef) -> None:
        self.renewed[ref.transfer_id] += 1


class Run:
    """One request through scripted stages."""

    def __init__(
        self,
        encoder: ScriptedEncoder,
        prefill: ScriptedPrefill | None,
        decode: ScriptedDecode,
        attempts: int = 3,
        busy_wait_s: float = 30.0,
        lease_s: float = 30.0,
    ) -> None:
        self.leases = CountedLeases()
        leases = RequestLeases(self.leases, lease_s)
        self.context = RequestContext("r", "t", Deadline(30), leases, RequestTrace("r"), AskedTickets())
        self.pipeline = Pipeline(encoder, prefill, decode, attempts=attempts, busy_wait_s=busy_wait_s)

    @property
    def released(self) -> Counter[str]:
        """How often each lease was given up."""
        return self.leases.released

    async def generate(self, *urls: str, params: SamplingParams | None = None) -> str:
        """The text that comes out; leases are closed as at the end of a request."""
        try:
            media = [MediaItem("image", url=url) for url in urls]
            asked = [(item.modality, self.pipeline.ask(self.context, item, ())) for item in media]
            items = await self.pipeline.encode(self.context, asked)
            generation = Generation("r", Prompt([1, 2]), tuple(items), params or _streamed(), GenerateOptions())
            return "".join(
                [output.outputs[0].text async for output in self.pipeline.generate(self.context, generation)]
            )
        finally:
            self.context.asked.close()
            self.context.leases.close()
            await asyncio.sleep(0)  # the releases of KV caches, which nobody waits for


def _asked(run: Run, url: str) -> tuple[Modality, asyncio.Task[TicketedItem]]:
    return "image", run.pipeline.ask(run.context, MediaItem("image", url=url), ())


async def test_leases_go_to_prefill_with_its_success() -> None:
    run = Run(ScriptedEncoder(), ScriptedPrefill(), decode := ScriptedDecode())
    assert await run.generate("x", "y") == "ab"
    assert not run.released
    assert decode.requests[0].kv_params == {"cache": 1}
    assert not decode.released


async def test_a_lost_prefill_is_followed_by_another_with_the_same_tickets() -> None:
    encoder, prefill = ScriptedEncoder(), ScriptedPrefill([WorkerLost("dead")])
    run = Run(encoder, prefill, ScriptedDecode())
    assert await run.generate("x") == "ab"
    assert prefill.transfers == [["transfer-1"], ["transfer-1"]]
    assert encoder.num_tickets == 1
    assert not run.released


async def test_a_lost_encoder_means_new_tickets() -> None:
    encoder, prefill = ScriptedEncoder(), ScriptedPrefill([EncoderLost("dead")])
    run = Run(encoder, prefill, ScriptedDecode())
    assert await run.generate("x") == "ab"
    assert prefill.transfers == [["transfer-1"], ["transfer-2"]]
    assert run.released == {"transfer-1": 1}


async def test_a_lost_decode_before_the_first_token_starts_again_from_the_encoder() -> None:
    """Prefill has released the leases, so the tickets of the first try are of no use."""
    prefill, decode = ScriptedPrefill(), ScriptedDecode([WorkerLost("dead")])
    run = Run(ScriptedEncoder(), prefill, decode)
    assert await run.generate("x") == "ab"
    assert prefill.transfers == [["transfer-1"], ["transfer-2"]]
    assert decode.released == [{"cache": 1}]
    assert not run.released


async def test_a_stream_goes_on_elsewhere_after_the_tokens_it_has_given() -> None:
    prefill, decode = ScriptedPrefill(), ScriptedDecode(late=[WorkerLost("dead"), None])
    run = Run(ScriptedEncoder(), prefill, decode)
    assert await run.generate("x") == "aab"
    assert prefill.prompts == [([1, 2], 0), ([1, 2, 1], 1)]
    assert [(request.prompt.token_ids, request.num_given_tokens) for request in decode.requests] == prefill.prompts
    assert prefill.transfers == [["transfer-1"], ["transfer-2"]]
    assert not decode.released  # The lost replica had pulled the first cache, the second pulled the other.
    assert not run.released


async def test_without_a_prefill_stage_a_stream_goes_on_with_its_embeddings() -> None:
    decode = ScriptedDecode(late=[WorkerLost("dead"), None])
    run = Run(ScriptedEncoder(), None, decode)
    assert await run.generate("x") == "aab"
    second = decode.requests[1]
    assert (second.prompt.token_ids, second.num_given_tokens) == ([1, 2, 1], 1)
    assert [ref.transfer_id for ref in second.embeddings] == ["transfer-2"]


async def test_decode_goes_on_behind_the_first_token_that_prefill_gave() -> None:
    prefill, decode = ScriptedPrefill(gives_first_token=True), ScriptedDecode()
    assert await Run(ScriptedEncoder(), prefill, decode).generate("x") == "pab"
    (request,) = decode.requests
    assert (request.prompt.token_ids, request.num_given_tokens) == ([1, 2, 1], 1)
    assert request.kv_params == {"cache": 1}
    assert not decode.released


async def test_an_answer_that_ends_with_the_token_of_prefill_is_not_decoded() -> None:
    prefill, decode = ScriptedPrefill(gives_first_token=True), ScriptedDecode()
    prefill.ends_answers = True
    run = Run(ScriptedEncoder(), prefill, decode)
    generation = Generation("r", Prompt([1, 2]), (), _streamed(), GenerateOptions())
    outputs = run.pipeline.generate(run.context, generation)
    first = await anext(outputs)
    first.finished = False  # As where other sequences of the same prompt go on.
    with pytest.raises(StopAsyncIteration):
        await anext(outputs)
    await asyncio.sleep(0)
    assert not decode.requests
    assert decode.released == [{"cache": 1}]


async def test_a_decode_lost_behind_the_first_token_is_followed_by_another() -> None:
    prefill = ScriptedPrefill(gives_first_token=True)
    decode = ScriptedDecode([WorkerLost("dead")])
    run = Run(ScriptedEncoder(), prefill, decode)
    assert await run.generate("x") == "ppab"
    assert prefill.prompts == [([1, 2], 0), ([1, 2, 1], 1)]
    assert (decode.requests[1].prompt.token_ids, decode.requests[1].num_given_tokens) == ([1, 2, 1, 1], 2)
    assert decode.released == [{"cache": 1}]
    assert not run.released


async def test_tokens_of_prefill_alone_give_no_attempts_back() -> None:
    decode = ScriptedDecode([WorkerLost("dead")] * 9)
    run = Run(ScriptedEncoder(), ScriptedPrefill(gives_first_token=True), decode, attempts=2)
    with pytest.raises(WorkerLost):
        await run.generate("x")
    assert len(decode.requests) == 2
    assert decode.released == [{"cache": 1}, {"cache": 2}]


async def test_a_reader_that_leaves_after_the_first_token_leaves_no_cache_behind() -> None:
    prefill, decode = ScriptedPrefill(gives_first_token=True), ScriptedDecode()
    run = Run(ScriptedEncoder(), prefill, decode)
    generation = Generation("r", Prompt([1, 2]), (), _streamed(), GenerateOptions())
    outputs = run.pipeline.generate(run.context, generation)
    assert (await anext(outputs)).outputs[0].text == "p"
    await outputs.aclose()
    await asyncio.sleep(0)
    assert not decode.requests
    assert decode.released == [{"cache": 1}]


async def test_every_token_gives_a_stream_its_attempts_back() -> None:
    decode = ScriptedDecode(late=[*[WorkerLost("dead")] * 3, None])
    run = Run(ScriptedEncoder(), None, decode, attempts=2)
    assert await run.generate() == "aaaab"
    assert decode.requests[-1].prompt.token_ids == [1, 2, 1, 1, 1]


async def test_losses_without_a_token_in_between_end_a_stream() -> None:
    decode = ScriptedDecode([None, WorkerLost("again"), WorkerLost("again and again")], late=[WorkerLost("dead")])
    run = Run(ScriptedEncoder(), ScriptedPrefill(), decode, attempts=2)
    with pytest.raises(WorkerLost, match=r"^again"):
        await run.generate()
    assert len(decode.requests) == 2


async def test_a_sequence_that_cannot_be_split_ends_with_one_error() -> None:
    prefill, decode = ScriptedPrefill(), ScriptedDecode(late=[WorkerLost("dead"), None])
    run = Run(ScriptedEncoder(), prefill, decode)
    with pytest.raises(WorkerLost):
        await run.generate("x", params=_streamed(seed=3))
    assert len(prefill.transfers) == len(decode.requests) == 1


async def test_a_replica_lost_after_the_last_token_is_no_loss() -> None:
    """The call's end is a message of its own; going on would generate tokens behind the end."""
    decode = ScriptedDecode(last=[WorkerLost("dead")])
    assert await Run(ScriptedEncoder(), ScriptedPrefill(), decode).generate("x") == "ab"
    assert len(decode.requests) == 1


@pytest.mark.parametrize(("num_outputs", "text"), [(0, "ab"), (1, "aab")])
async def test_a_stream_that_just_ends_is_a_lost_replica(num_outputs: int, text: str) -> None:
    decode = ScriptedDecode(cuts=[num_outputs])
    run = Run(ScriptedEncoder(), ScriptedPrefill(), decode)
    assert await run.generate("x") == text
    assert len(decode.requests) == 2
    assert run.context.trace.retries == {"worker_lost": 1}
    assert len(decode.released) == (0 if num_outputs else 1)
    assert not run.released


async def test_streams_that_always_just_end_are_no_answer() -> None:
    decode = ScriptedDecode(cuts=[0] * 9)
    with pytest.raises(WorkerLost):
        await Run(ScriptedEncoder(), ScriptedPrefill(), decode, attempts=2).generate("x")
    assert len(decode.requests) == len(decode.released) == 2


@pytest.mark.parametrize("has_prefill", [True, False])
async def test_an_item_that_occurs_twice_keeps_no_lease_once_the_prompt_is_computed(has_prefill: bool) -> None:
    """An engine fetches it once; the other ticket's lease was renewed to the end of the answer."""
    held: list[int] = []
    decode = ScriptedDecode(on_output=lambda: held.append(run.context.leases.num_held))
    prefill = ScriptedPrefill()
    run = Run(ScriptedEncoder(), prefill if has_prefill else None, decode)
    assert await run.generate("x", "x", "y") == "ab"
    (fetched,) = prefill.transfers or [[ref.transfer_id for ref in decode.requests[0].embeddings]]
    assert fetched == ["transfer-2", "transfer-3"]
    assert held == ([0, 0] if has_prefill else [3, 0])
    assert run.released == {"transfer-1": 1}


async def test_an_item_that_occurs_twice_keeps_both_leases_for_another_attempt() -> None:
    prefill = ScriptedPrefill([WorkerLost("dead")])
    run = Run(encoder := ScriptedEncoder(), prefill, ScriptedDecode())
    assert await run.generate("x", "x") == "ab"
    assert prefill.transfers == [["transfer-2"]] * 2
    assert encoder.num_tickets == 2
    assert run.released == {"transfer-1": 1}


async def test_new_tickets_are_asked_for_at_the_same_time() -> None:
    encoder = ScriptedEncoder()
    run = Run(encoder, ScriptedPrefill([EncoderLost("dead")]), ScriptedDecode())
    items = await run.pipeline.encode(run.context, [_asked(run, url) for url in "xyz"])
    encoder.most_under_way = 0
    generation = Generation("r", Prompt([1, 2]), tuple(items), _streamed(), GenerateOptions())
    assert len([output async for output in run.pipeline.generate(run.context, generation)]) == 2
    assert encoder.most_under_way == 3


async def test_a_new_ticket_that_cannot_be_had_ends_the_request_with_every_lease() -> None:
    encoder = ScriptedEncoder([None, None, None, None, BadMedia("gone")])
    run = Run(encoder, ScriptedPrefill([EncoderLost("dead")]), ScriptedDecode())
    with pytest.raises(BadMedia, match="image 2 of 3: gone"):
        await run.generate("x", "y", "z")
    assert run.released == {f"transfer-{index + 1}": 1 for index in range(encoder.num_tickets)}
    assert run.context.leases.num_held == 0


async def test_a_full_encoder_is_waited_for_by_a_request_that_has_cost_something() -> None:
    """Not for `busy_wait_s`: the client has had a part of the answer."""
    encoder, decode = ScriptedEncoder([None, Busy("full"), Busy("full")]), ScriptedDecode(late=[WorkerLost("dead")])
    run = Run(encoder, ScriptedPrefill(), decode, busy_wait_s=0)
    assert await run.generate("x") == "aab"


async def test_a_full_encoder_is_waited_for_by_a_request_that_has_tickets() -> None:
    """As the second of `n` sequences, which asks for tickets of its own."""
    run = Run(ScriptedEncoder([None, Busy("full")]), ScriptedPrefill(), ScriptedDecode(), busy_wait_s=0)
    for _ in range(2):
        await run.pipeline.encode(run.context, [_asked(run, "x")])
    run.context.leases.close()
    assert run.released == {"transfer-1": 1, "transfer-2": 1}


async def test_a_wait_for_room_is_one_retry_however_long_it_is() -> None:
    encoder, prefill = ScriptedEncoder([Busy("full")] * 2), ScriptedPrefill([QueueFull("full")] * 3)
    run = Run(encoder, prefill, ScriptedDecode())
    assert await run.generate("x") == "ab"
    assert run.context.trace.retries == {"busy": 1, "queue_full": 1}


async def test_a_full_encoder_is_waited_for_and_costs_no_attempt() -> None:
    run = Run(ScriptedEncoder([Busy("full"), Busy("full")]), ScriptedPrefill(), ScriptedDecode(), attempts=1)
    assert await run.generate("x") == "ab"
    assert not run.released


async def test_an_encoder_that_stays_full_ends_the_request() -> None:
    encoder = ScriptedEncoder([None, *[Busy("full")] * 50])
    run = Run(encoder, ScriptedPrefill(), decode := ScriptedDecode(), busy_wait_s=0.1)
    with pytest.raises(Busy, match="image 2 of 2: full"):
        await run.generate("x", "y")
    assert run.released == {"transfer-1": 1}
    assert not decode.requests


async def test_without_a_wait_a_full_encoder_ends_the_request_at_once() -> None:
    encoder = ScriptedEncoder([Busy("full")])
    run = Run(encoder, ScriptedPrefill(), ScriptedDecode(), busy_wait_s=0)
    with pytest.raises(Busy):
        await run.generate("x")
    assert encoder.num_tickets == 0


async def test_a_full_prefill_is_waited_for_with_what_was_encoded_and_lets_nobody_new_in() -> None:
    """Not for `busy_wait_s`: the encoder has worked for this request already."""
    encoder, prefill = ScriptedEncoder(), ScriptedPrefill([QueueFull("full")] * 3)
    run = Run(encoder, prefill, ScriptedDecode(), attempts=1, busy_wait_s=0)
    answer = asyncio.ensure_future(run.generate("x"))
    await asyncio.sleep(0.02)
    assert run.pipeline.is_full
    assert await answer == "ab"
    assert not run.pipeline.is_full
    assert prefill.transfers == [["transfer-1"]] * 4
    assert encoder.num_tickets == 1


async def test_leases_are_renewed_while_their_request_waits_and_not_after() -> None:
    run = Run(ScriptedEncoder(), ScriptedPrefill([QueueFull("full")] * 3), ScriptedDecode(), lease_s=0.03)
    assert await run.generate("x", "y") == "ab"
    renewed = dict(run.leases.renewed)
    assert renewed.keys() == {"transfer-1", "transfer-2"}
    assert min(renewed.values()) > 1
    await asyncio.sleep(0.1)
    assert run.leases.renewed == renewed


async def test_a_full_decode_is_waited_for_with_the_cache_that_was_computed() -> None:
    prefill, decode = ScriptedPrefill(), ScriptedDecode([QueueFull("full"), QueueFull("full")])
    run = Run(ScriptedEncoder(), prefill, decode, attempts=1, busy_wait_s=0)
    assert await run.generate() == "ab"
    assert len(prefill.prompts) == 1
    assert [request.kv_params for request in decode.requests] == [{"cache": 1}] * 3
    assert not decode.released


@pytest.mark.parametrize("has_prefill", [True, False])
async def test_text_is_turned_away_when_the_first_stage_stays_full(has_prefill: bool) -> None:
    full: Script = [QueueFull("full")] * 50
    prefill = ScriptedPrefill(full) if has_prefill else None
    decode = ScriptedDecode() if has_prefill else ScriptedDecode(full)
    with pytest.raises(QueueFull):
        await Run(ScriptedEncoder(), prefill, decode, busy_wait_s=0.1).generate()


async def test_the_last_attempt_raises_and_gives_up_the_lease() -> None:
    run = Run(ScriptedEncoder(), ScriptedPrefill([WorkerLost("1"), WorkerLost("2")]), ScriptedDecode(), attempts=2)
    with pytest.raises(WorkerLost, match="2"):
        await run.generate("x")
    assert run.released == {"transfer-1": 1}


async def test_a_terminal_error_is_not_tried_again() -> None:
    prefill = ScriptedPrefill([BadMedia("damaged")])
    run = Run(ScriptedEncoder(), prefill, ScriptedDecode())
    with pytest.raises(BadMedia):
        await run.generate("x")
    assert len(prefill.transfers) == 1
    assert run.released == {"transfer-1": 1}


async def test_one_bad_item_fails_the_request_and_names_itself() -> None:
    run = Run(ScriptedEncoder([None, BadMedia("not an image")]), ScriptedPrefill(), decode := ScriptedDecode())
    with pytest.raises(BadMedia, match="image 2 of 2: not an image"):
        await run.generate("x", "y")
    assert run.released == {"transfer-1": 1}
    assert not decode.requests


async def test_without_a_prefill_stage_decode_gets_the_embeddings() -> None:
    decode = ScriptedDecode([EncoderLost("dead")])
    run = Run(ScriptedEncoder(), None, decode)
    assert await run.generate("x") == "ab"
    assert [[ref.transfer_id for ref in request.embeddings] for request in decode.requests] == [
        ["transfer-1"],
        ["transfer-2"],
    ]
    assert all(request.kv_params is None for request in decode.requests)
    assert run.released == {"transfer-1": 1}


async def test_a_ticket_that_nobody_waits_for_is_given_up_with_the_request() -> None:
    run = Run(ScriptedEncoder(), ScriptedPrefill(), ScriptedDecode())
    taken = run.pipeline.ask(run.context, MediaItem("image", url="x"), ())
    await asyncio.wait([taken], timeout=5)
    failed = run.pipeline.ask(run.context, MediaItem("image", url="y"), ())
    run.context.asked.close()
    run.context.leases.close()
    await asyncio.wait([failed], timeout=5)
    assert failed.cancelled()
    assert run.released == {"transfer-1": 1}
