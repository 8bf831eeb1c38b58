"""Several sequences in one stream: their places, their one end, their one failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from cluster.ingress.fan_out import merge_sequences
from transfer import WorkerLost

_DELTA = SamplingParams(output_kind=RequestOutputKind.DELTA)


def _output(text: str, *, finished: bool) -> RequestOutput:
    completion = CompletionOutput(0, text, [1], None, None, finish_reason="stop" if finished else None)
    return RequestOutput("r", None, [1], None, [completion], finished)


async def _sequence(*texts: str, end_s: float = 0) -> AsyncGenerator[RequestOutput, None]:
    """Its end comes `end_s` after its last output, as the end of a stage's call does."""
    for text in texts:
        yield _output(text, finished=text == texts[-1])
    await asyncio.sleep(end_s)


@pytest.mark.parametrize("end_s", [0, 0.01])
async def test_the_last_output_of_all_says_finished_and_no_other_one(end_s: float) -> None:
    children = [_sequence("a", "b", end_s=end_s), _sequence("c", "d", "e", end_s=end_s)]
    outputs = [output async for output in merge_sequences(children, _DELTA)]
    assert [output.finished for output in outputs] == [False] * 4 + [True]
    texts = {index: "".join(o.outputs[0].text for o in outputs if o.outputs[0].index == index) for index in (0, 1)}
    assert texts == {0: "ab", 1: "cde"}


async def test_final_outputs_come_as_one() -> None:
    params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY)
    (whole,) = [output async for output in merge_sequences([_sequence("a"), _sequence("b")], params)]
    assert whole.finished
    assert [(completion.index, completion.text) for completion in whole.outputs] == [(0, "a"), (1, "b")]


async def test_one_failure_ends_all() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncGenerator[RequestOutput, None]:
        try:
            await asyncio.sleep(60)
            yield _output("never", finished=True)
        finally:
            ended.set()

    async def failing() -> AsyncGenerator[RequestOutput, None]:
        yield _output("a", finished=False)
        raise WorkerLost("dead")

    with pytest.raises(WorkerLost):
        _ = [output async for output in merge_sequences([endless(), failing()], _DELTA)]
    assert ended.is_set()
