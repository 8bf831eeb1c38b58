"""Measures how fast embeddings get from an encoder's process to another: our channels and what they are compared with.

Producer and consumer are separate processes of this machine. The peers of one size take turns, so that other work on
the machine meets them alike. Times end with the bytes in memory of the consumer; `shm held` and `ec_example` map what
the producer wrote, all others copy:

- fetch: from asking, where the embedding has been ready at the producer for a while.
- stream: as fetch with several under way at a time, per embedding; what goes through, not how long one takes.
- handover: the tensor has just been computed. What the producer takes to give it and the consumer to get it; how one
  learns from the other that it is there is the benchmark's own pipe for all peers, and not counted.
- parked: asked for first; from the moment when the producer begins to give it, of which nothing but the channel tells.
  Our channels only.
- busy: as fetch and parked, while the producer's process computes (see `transfer_peers.tower`).

Usage: python -m benchmarks.transfer [--out benchmarks/results/transfer.json] [--sizes 65536 ...] [--seconds 1.0]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from benchmarks.transfer_peers import NUM_IN_FLIGHT, PEERS, Consumer, consumer_of, producer_of
from benchmarks.transfer_peers.tower import Tower
from benchmarks.transfer_report import KINDS, Machine, Result, heading, picture, ratios, table
from transfer import tensor_to_buffer

WIDTH = 2048
SIZES = [64 * 1024 << shift for shift in range(0, 11, 2)]
BUSY_BYTES = 64 * 1024
_TURNS = 6
_MIN_ROUNDS = 12
_MAX_ROUNDS = 600
_BUSY_TIMES_LONGER = 6
"""A computing thread gives what it has made between two layers only, and a 99th percentile needs many rounds."""
_WAIT_S = 60.0
_STREAM_LENGTH = 12


class Run:
    """One peer at one size: its producer's process, its consumer, and the times taken so far."""

    def __init__(self, peer: str, num_bytes: int, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.transfer", "benchmarks.transfer_peers.ours"])
        self.peer, self.num_bytes = peer, num_bytes
        self.times: dict[str, list[float]] = {}
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=produce, args=(peer, num_bytes, folder, far))
        self._process.start()
        self.consumer: Consumer = consumer_of(peer)(_receive(self._pipe), num_bytes)
        self._item = _ask(self._pipe, "prepare")
        _ask(self._pipe, "publish")
        self.consumer.expect(self._item)
        _check(self.consumer.collect(), num_bytes)
        self._signal(signal.SIGSTOP)

    def kinds(self) -> dict[str, Callable[[], float]]:
        """What can be measured of this peer."""
        found: dict[str, Callable[[], float]] = {}
        if self.consumer.has_fetch:
            found["fetch"] = self._fetch
        if self.consumer.streams:
            found["stream"] = self._stream
        if self.consumer.has_handover:
            found["handover"] = self._handover
        if self.consumer.parks:
            found["parked"] = self._parked
            if self.num_bytes == BUSY_BYTES:
                found |= {"busy fetch": self._fetch, "busy parked": self._parked}
        return found

    def take_turn(self, kind: str, one: Callable[[], float], seconds: float, max_rounds: int) -> None:
        """Some rounds of one kind; outside its turns the producer is stopped, since NIXL's would take a core."""
        self._signal(signal.SIGCONT)
        if kind.startswith("busy"):
            _ask(self._pipe, "compute")
        for _ in range(3):
            one()
        times = self.times.setdefault(kind, [])
        end = time.monotonic() + seconds
        for number in range(max_rounds):
            if number >= _MIN_ROUNDS / _TURNS and time.monotonic() > end:
                break
            times.append(one())
        if kind.startswith("busy"):
            _ask(self._pipe, "rest")
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End both ends."""
        self._signal(signal.SIGCONT)
        self.consumer.close()
        self._pipe.send("stop")
        self._process.join(_WAIT_S)
        self._process.kill()
        self._process.join()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def _fetch(self) -> float:
        started = time.perf_counter()
        self.consumer.expect(self._item)
        self.consumer.collect()
        return time.perf_counter() - started

    def _stream(self) -> float:
        started = time.perf_counter()
        for number in range(_STREAM_LENGTH + NUM_IN_FLIGHT):
            if number >= NUM_IN_FLIGHT:
                self.consumer.collect()
            if number < _STREAM_LENGTH:
                self.consumer.expect(self._item)
        return (time.perf_counter() - started) / _STREAM_LENGTH

    def _handover(self) -> float:
        item = _ask(self._pipe, "prepare")
        begun, ended = _moments(_ask(self._pipe, "publish"))
        started = time.perf_counter()
        self.consumer.expect(item)
        self.consumer.collect()
        getting_s = time.perf_counter() - started
        self.consumer.done(item)
        return ended - begun + getting_s

    def _parked(self) -> float:
        item = _ask(self._pipe, "prepare")
        self.consumer.expect(item)
        self._pipe.send("publish")
        self.consumer.collect()
        arrived = time.perf_counter()
        begun, _ = _moments(_receive(self._pipe))
        self.consumer.done(item)
        return arrived - begun


def produce(peer: str, num_bytes: int, folder: Path, pipe: Connection) -> None:
    """The producer's process: does what it is told until it is told to stop."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(num_bytes)
    tensor = torch.randn(num_bytes // (WIDTH * 4), WIDTH, generator=generator)
    producer = producer_of(peer)(tensor, folder)
    tower = Tower()
    commands: dict[str, Callable[[], object]] = {
        "prepare": producer.prepare,
        "publish": lambda: tower.after_its_pass(partial(_timed, producer.publish)),
        "compute": tower.start,
        "rest": tower.stop,
    }
    pipe.send(producer.address)
    while (command := pipe.recv()) != "stop":
        pipe.send(commands[command]())
    tower.stop()
    producer.close()


def _timed(call: Callable[[], None]) -> tuple[float, float]:
    """When it began and ended, by the clock that all processes of this machine share."""
    begun = time.perf_counter()
    call()
    return begun, time.perf_counter()


def _moments(answer: object) -> tuple[float, float]:
    assert isinstance(answer, tuple)
    begun, ended = answer
    return begun, ended


def _check(memory: memoryview, num_bytes: int) -> None:
    generator = torch.Generator().manual_seed(num_bytes)
    expected = torch.randn(num_bytes // (WIDTH * 4), WIDTH, generator=generator)
    assert memory == tensor_to_buffer(expected), "the bytes that arrived are others"


def _ask(pipe: Connection, command: str) -> object:
    pipe.send(command)
    return _receive(pipe)


def _receive(pipe: Connection) -> object:
    assert pipe.poll(_WAIT_S), "the producer does not answer"
    answer: object = pipe.recv()
    return answer


def measure(peers: list[str], kinds: list[str], num_bytes: int, seconds: float, folder: Path) -> list[Result]:
    """These times of all peers at one size."""
    runs: list[Run] = []
    try:
        runs += [Run(peer, num_bytes, folder) for peer in peers]
        for _ in range(_TURNS):
            for kind in kinds:
                for run in runs:
                    if one := run.kinds().get(kind):
                        longer = _BUSY_TIMES_LONGER if kind.startswith("busy") else 1
                        run.take_turn(kind, one, longer * seconds / _TURNS, _MAX_ROUNDS // _TURNS)
    finally:
        for run in runs:
            run.close()
    return [_summary(run, kind) for run in runs for kind in run.times]


def _summary(run: Run, kind: str) -> Result:
    times = sorted(run.times[kind])
    p99 = times[min(len(times) - 1, round(0.99 * len(times)))]
    return Result(run.peer, kind, run.num_bytes, len(times), statistics.median(times), p99)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/transfer.json"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="bytes, multiples of one row")
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--seconds", type=float, default=1.0, help="per peer, size and kind of time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: list[Result] = []
    # In memory, which is the best case for the peer that goes through files.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for num_bytes in arguments.sizes:
            results += measure(arguments.peers, arguments.kinds, num_bytes, arguments.seconds, Path(folder))
            print(f"{num_bytes // 1024} KiB done", file=sys.stderr, flush=True)
    machine = Machine(describe_machine(), len(os.sched_getaffinity(0)), os.getloadavg()[0], torch.__version__)
    lines = [*heading(machine), "", *table(results), "", *ratios(results)]
    print("\n".join(lines))
    rows = [dataclasses.asdict(result) | {"bytes_per_s": result.bytes_per_s} for result in results]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": dataclasses.asdict(machine), "results": rows}, indent=1) + "\n")
    arguments.out.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    arguments.out.with_suffix(".svg").write_text(picture(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
