"""Joins the outputs of a request's `n` sequences into the one stream that vLLM's application expects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

_Entry = tuple[int, RequestOutput | BaseException | None]


async def merge_sequences(
    children: Sequence[AsyncGenerator[RequestOutput, None]], params: SamplingParams
) -> AsyncGenerator[RequestOutput, None]:
    """Outputs of all children, completion `index` being the child's place; the first failure ends all of them.

    When only final outputs are wanted, one output with every completion comes at the end.
    """
    entries: asyncio.Queue[_Entry] = asyncio.Queue(maxsize=2 * len(children))
    tasks = [asyncio.ensure_future(_drain(index, child, entries)) for index, child in enumerate(children)]
    final: dict[int, RequestOutput] = {}
    running = len(children)
    unfinished = set(range(running))
    try:
        while running:
            index, entry = await entries.get()
            if isinstance(entry, BaseException):
                raise entry
            if entry is None:
                running -= 1
                continue
            for completion in entry.outputs:
                completion.index = index
            if params.output_kind is RequestOutputKind.FINAL_ONLY:
                final[index] = entry
                continue
            if entry.finished:  # Not the child's end, which may come behind the last outputs of all others.
                unfinished.discard(index)
            entry.finished = not unfinished
            yield entry
        if final:
            whole = final[0]
            whole.outputs = [completion for index in sorted(final) for completion in final[index].outputs]
            yield whole
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _drain(index: int, child: AsyncGenerator[RequestOutput, None], entries: asyncio.Queue[_Entry]) -> None:
    try:
        async with contextlib.aclosing(child):
            async for output in child:
                await entries.put((index, output))
        await entries.put((index, None))
    except Exception as error:  # Carried to the consumer, which raises it.
        await entries.put((index, error))
