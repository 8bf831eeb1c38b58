"""The encoder's side of a group: starts its rank processes, runs passes on them, and ends them all together.

    starting --> ready <--> in a pass --> closed
        |                       |
        +---- a rank fails, ends or is late ----> closed, with a typed error

A group that has lost one rank is ended: the others may be waiting for it. Rank processes never outlive the encoder.
"""

from __future__ import annotations

import itertools
import json
import logging
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from encoder_workers.media import Prepared
from encoder_workers.ranks.exchange import ExchangeFailed
from encoder_workers.ranks.link import Link, LinkClosed, SharedBuffer
from encoder_workers.ranks.messages import (
    FromRank,
    LaunchRank,
    PassDone,
    PassItem,
    RankFailed,
    RankReady,
    RowType,
    RunPass,
)

logger = logging.getLogger(__name__)

_END_S = 10.0
_REASON_S = 5.0
_ALIGNMENT = 64
_ROW_TYPES: dict[torch.dtype, RowType] = {torch.uint8: "uint8", torch.float32: "float32"}
# The path of imports goes along, since the process that starts ranks may have changed its own.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from encoder_workers.ranks.process import main; main(int(sys.argv[1]))"
)


class RankLost(RuntimeError):
    """A rank failed, ended or did not answer in time; the group is closed.

    Attributes:
        error: type of the exception that a rank ended with; None when it ended without a word or was late.
    """

    def __init__(self, message: str, error: str | None = None) -> None:
        super().__init__(message)
        self.error = error


@dataclass(frozen=True)
class _Rank:
    process: subprocess.Popen[bytes]
    link: Link


class RankGroup:
    """Running rank processes. Used by one thread at a time."""

    def __init__(self, launch: LaunchRank, dtype: torch.dtype) -> None:
        """Start `launch.num_ranks` processes and wait until all are ready; a device without a number gets one each.

        Raises RankLost; no process is left then.
        """
        self._dtype = dtype
        self._timeout_s = launch.timeout_s
        self._ranks: list[_Rank] = []
        with tempfile.TemporaryDirectory(prefix="triptych-ranks-") as folder:
            try:
                for rank in range(launch.num_ranks):
                    self._start(replace(launch, rank=rank, rendezvous=str(Path(folder) / "rendezvous")))
                answers = self._answers()
            except BaseException:
                self._end(grace_s=0.0)
                raise
        ready = answers[0]
        assert isinstance(ready, RankReady)
        self.row_bytes = ready.row_bytes
        self.rows_per_pair = ready.rows_per_pair
        self.free_bytes = min(answer.free_bytes for answer in answers if isinstance(answer, RankReady))
        self.width = ready.width
        self.layout = ready.layout
        logger.info(
            "an encoder's %d ranks plan with %.3g s per multiply-add of a product and %.3g s of attention, and %.3g s "
            "per value exchanged",
            launch.num_ranks,
            ready.rates.product_s,
            ready.rates.attention_s,
            ready.rates.exchange_s,
        )

    @property
    def process_ids(self) -> list[int]:
        """Of the ranks, in order."""
        return [rank.process.pid for rank in self._ranks]

    @property
    def is_open(self) -> bool:
        return bool(self._ranks)

    def run(self, batch: Sequence[Prepared]) -> list[torch.Tensor]:
        """Tokens [num_tokens, width] of each item, on the host. Raises RankLost, and the group is closed then."""
        items = self._items(batch)
        last = items[-1]
        inputs = SharedBuffer.create(sum(_aligned(item.inputs.nbytes) for item in batch), "triptych-inputs")
        try:
            row_bytes = self.width * self._dtype.itemsize
            outputs = SharedBuffer.create(last.output_offset + last.num_tokens * row_bytes, "triptych-tokens")
            try:
                for item, prepared in zip(items, batch, strict=True):
                    inputs.tensor(prepared.inputs.dtype, item.shape, item.input_offset).copy_(prepared.inputs)
                self._compute(RunPass(items), inputs, outputs)
            finally:
                outputs.close_descriptor()
        finally:
            inputs.close_descriptor()
        return [outputs.tensor(self._dtype, (item.num_tokens, self.width), item.output_offset) for item in items]

    def close(self) -> None:
        """End the processes. Idempotent."""
        self._end(_END_S)

    def _items(self, batch: Sequence[Prepared]) -> tuple[PassItem, ...]:
        input_ends = itertools.accumulate((_aligned(item.inputs.nbytes) for item in batch), initial=0)
        row_bytes = self.width * self._dtype.itemsize
        output_ends = itertools.accumulate(
            (_aligned(item.metadata.num_tokens * row_bytes) for item in batch), initial=0
        )
        return tuple(
            PassItem(
                shape=tuple(item.inputs.shape),
                dtype=_ROW_TYPES[item.inputs.dtype],
                input_offset=input_offset,
                output_offset=output_offset,
                grid=item.grid,
                modality=item.metadata.modality,
                num_tokens=item.metadata.num_tokens,
                num_patches=item.metadata.num_patches,
            )
            for item, input_offset, output_offset in zip(batch, input_ends, output_ends, strict=False)
        )

    def _compute(self, message: RunPass, inputs: SharedBuffer, outputs: SharedBuffer) -> None:
        if not self._ranks:
            raise RankLost("the encoder group is closed")
        try:
            for index, rank in enumerate(self._ranks):
                try:
                    rank.link.send(message, (inputs, outputs))
                except (LinkClosed, TimeoutError) as error:
                    raise self._lost(index) from error
            answers = self._answers()
            assert all(isinstance(answer, PassDone) for answer in answers), answers
        except BaseException:
            self._end(grace_s=0.0)
            raise

    def _start(self, launch: LaunchRank) -> None:
        if launch.device != "cpu":
            launch = replace(launch, device=f"{launch.device}:{launch.rank}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            command = [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(sys.path)]
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        ours.settimeout(self._timeout_s)
        self._ranks.append(_Rank(process, Link(ours)))
        try:
            self._ranks[-1].link.send(launch)
        except (LinkClosed, TimeoutError) as error:
            raise self._lost(launch.rank) from error

    def _answers(self) -> list[FromRank]:
        """One answer of each rank, in order. Raises RankLost at the first that will not come."""
        deadline = time.monotonic() + self._timeout_s
        answers: dict[int, FromRank] = {}
        consequence: RankLost | None = None
        with selectors.DefaultSelector() as selector:
            for index, rank in enumerate(self._ranks):
                selector.register(rank.link, selectors.EVENT_READ, index)
            while selector.get_map():
                events = selector.select(max(0.0, deadline - time.monotonic()))
                if not events and consequence is not None:
                    raise consequence
                if not events:
                    late = sorted(set(range(len(self._ranks))) - set(answers))
                    raise RankLost(f"ranks {late} of the encoder did not answer within {self._timeout_s:.0f} s")
                for key, _ in events:
                    try:
                        answers[key.data] = self._answer(key.data)
                    except RankLost as error:
                        if error.error != ExchangeFailed.__name__:
                            raise
                        # The reason is another rank's: it is heard of at once, or that rank hangs.
                        consequence = consequence or RankLost(str(error))
                        deadline = min(deadline, time.monotonic() + _REASON_S)
                    selector.unregister(key.fileobj)
        if consequence is not None:
            raise consequence
        return [answers[index] for index in range(len(self._ranks))]

    def _answer(self, index: int) -> FromRank:
        try:
            message, _ = self._ranks[index].link.receive()
        except (LinkClosed, TimeoutError) as error:
            raise self._lost(index) from error
        if isinstance(message, RankFailed):
            raise RankLost(f"rank {index} of the encoder failed: {message.error}: {message.message}", message.error)
        assert isinstance(message, RankReady | PassDone), type(message)
        return message

    def _lost(self, index: int) -> RankLost:
        try:
            status = self._ranks[index].process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return RankLost(f"rank {index} of the encoder does not answer any more")
        return RankLost(f"rank {index} of the encoder ended with status {status}")

    def _end(self, grace_s: float) -> None:
        """A closed link ends a rank by itself; one that cannot see that is killed after `grace_s`."""
        ranks, self._ranks = self._ranks, []
        for rank in ranks:
            rank.link.close()
        deadline = time.monotonic() + grace_s
        for rank in ranks:
            try:
                rank.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
