"""Measures how fast embeddings get from an encoder's process to another: our channels and what they are compared with.

Producer and consumer are separate processes of this machine. Two times are taken:

- fetch: the embedding is ready at the producer; from asking for it to having it.
- handover: the tensor has just been computed; from telling the producer to having it at the consumer.

Usage: python -m benchmarks.transfer [--out benchmarks/results/transfer.json] [--sizes 65536 ...] [--seconds 1.0]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.machine import describe_machine

if TYPE_CHECKING:
    from benchmarks.transfer_peers import Consumer

WIDTH = 2048
SIZES = [64 * 1024 << shift for shift in range(0, 11, 2)]
PEERS = ("memcpy", "socket", "zmq", "shm", "nixl", "ec_example")
_MIN_ROUNDS = 8
_MAX_ROUNDS = 400
_WAIT_S = 60.0


@dataclass(frozen=True)
class Result:
    """Times of one peer at one size, in seconds; bandwidth follows from the median."""

    peer: str
    kind: str
    num_bytes: int
    num_rounds: int
    p50_s: float
    p99_s: float

    @property
    def bytes_per_s(self) -> float:
        return self.num_bytes / self.p50_s


@dataclass(frozen=True)
class Machine:
    """What the figures depend on besides the code; `load` is the mean of the last minute."""

    name: str
    num_cpus: int
    load: float
    torch: str


def measure(peer: str, num_bytes: int, seconds: float, folder: Path) -> list[Result]:
    """Both times of one peer at one size, where it has them."""
    from benchmarks.transfer_peers import CONSUMERS

    near, far = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=produce, args=(peer, num_bytes, folder, far))
    process.start()
    try:
        consumer = CONSUMERS[peer](_receive(near), num_bytes)
        results = []
        item = _ask(near, "prepare")
        _ask(near, "publish")
        consumer.expect(item)
        _check(consumer.collect(), num_bytes)

        def fetch() -> None:
            consumer.expect(item)
            consumer.collect()

        if consumer.has_fetch:
            results.append(_summary(peer, "fetch", num_bytes, _rounds(lambda: _timed(fetch), seconds)))
        if consumer.has_handover:
            rounds = _rounds(lambda: _handover(consumer, near), seconds)
            results.append(_summary(peer, "handover", num_bytes, rounds))
        consumer.close()
        near.send("stop")
        process.join(_WAIT_S)
        return results
    finally:
        process.kill()
        process.join()


def produce(peer: str, num_bytes: int, folder: Path, pipe: Connection) -> None:
    """The producer's process: does what it is told until it is told to stop."""
    from benchmarks.transfer_peers import PRODUCERS

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(num_bytes)
    tensor = torch.randn(num_bytes // (WIDTH * 4), WIDTH, generator=generator)
    producer = PRODUCERS[peer](tensor, folder)
    pipe.send(producer.address)
    while (command := pipe.recv()) != "stop":
        pipe.send(producer.prepare() if command == "prepare" else producer.publish())
    producer.close()


def _check(tensor: torch.Tensor, num_bytes: int) -> None:
    generator = torch.Generator().manual_seed(num_bytes)
    expected = torch.randn(num_bytes // (WIDTH * 4), WIDTH, generator=generator)
    assert torch.equal(tensor.view(torch.float32).view(expected.shape), expected), "the bytes that arrived are others"


def _handover(consumer: Consumer, pipe: Connection) -> float:
    item = _ask(pipe, "prepare")
    started = time.perf_counter()
    if consumer.parks:
        consumer.expect(item)
        pipe.send("publish")
    else:
        _ask(pipe, "publish")
        consumer.expect(item)
    consumer.collect()
    seconds = time.perf_counter() - started
    if consumer.parks:
        _receive(pipe)
    consumer.done(item)
    return seconds


def _timed(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _rounds(one: Callable[[], float], seconds: float) -> list[float]:
    for _ in range(3):
        one()
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < _MIN_ROUNDS or (len(times) < _MAX_ROUNDS and time.monotonic() < end):
        times.append(one())
    return times


def _summary(peer: str, kind: str, num_bytes: int, times: list[float]) -> Result:
    p99 = sorted(times)[min(len(times) - 1, round(0.99 * len(times)))]
    return Result(peer, kind, num_bytes, len(times), statistics.median(times), p99)


def _ask(pipe: Connection, command: str) -> object:
    pipe.send(command)
    return _receive(pipe)


def _receive(pipe: Connection) -> object:
    assert pipe.poll(_WAIT_S), "the producer does not answer"
    answer: object = pipe.recv()
    return answer


def heading(machine: Machine) -> list[str]:
    """Where it was measured, and whether the figures can be believed."""
    lines = [f"{machine.name}; torch {machine.torch}"]
    if machine.load > machine.num_cpus:
        lines += [
            f"NOT COMPARABLE: other work ran on this machine (load {machine.load:.0f} on {machine.num_cpus} cores).",
            "The peers were measured one after another, so differences below a factor of several may be that work's.",
        ]
    return lines


def table(results: list[Result]) -> list[str]:
    """The results for people, by time and size."""
    lines = [f"{'kind':9} {'size':>9}  {'peer':10} {'p50 ms':>9} {'p99 ms':>9} {'GB/s':>7} {'rounds':>6}"]
    for kind in ("fetch", "handover"):
        for num_bytes in sorted({result.num_bytes for result in results}):
            lines.append("")
            for result in results:
                if (result.kind, result.num_bytes) == (kind, num_bytes):
                    times = f"{result.p50_s * 1e3:9.3f} {result.p99_s * 1e3:9.3f} {result.bytes_per_s / 1e9:7.2f}"
                    lines.append(f"{kind:9} {num_bytes // 1024:>5} KiB  {result.peer:10} {times} {result.num_rounds:6}")
    return lines


def ratios(results: list[Result]) -> list[str]:
    """What the channels are held to."""
    p50 = {(result.peer, result.kind, result.num_bytes): result.p50_s for result in results}
    wanted = [
        ("zmq", "socket", "fetch", 0.75, 4 * 2**20),
        ("shm", "nixl", "fetch", 1.0, 0),
        ("shm", "nixl", "handover", 1.0, 0),
        ("shm", "ec_example", "handover", 3.0, 0),
    ]
    lines = []
    for ours, other, kind, target, min_bytes in wanted:
        for num_bytes in sorted({result.num_bytes for result in results}):
            pair = (ours, kind, num_bytes), (other, kind, num_bytes)
            if num_bytes >= min_bytes and all(key in p50 for key in pair):
                ratio = p50[pair[1]] / p50[pair[0]]
                verdict = "reached" if ratio >= target else "missed"
                text = f"{ours} / {other} ({kind}) at {num_bytes // 1024} KiB"
                lines.append(f"{text:45} {ratio:6.2f}  target {target:.2f}  {verdict}")
    return lines


def plot(results: list[Result], path: Path) -> bool:
    """A picture of bandwidth by size, where matplotlib is installed."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return False
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True)
    for axis, kind in zip(axes, ("fetch", "handover"), strict=True):
        for peer in PEERS:
            points = [(r.num_bytes, r.bytes_per_s / 1e9) for r in results if (r.peer, r.kind) == (peer, kind)]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=peer)
        axis.set(xscale="log", yscale="log", xlabel="bytes", ylabel="GB/s", title=kind)
        axis.legend()
    figure.savefig(path)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/transfer.json"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="bytes, multiples of one row")
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS)
    parser.add_argument("--seconds", type=float, default=1.0, help="per peer, size and kind of time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: list[Result] = []
    # In memory, which is the best case for the peer that goes through files.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for num_bytes in arguments.sizes:
            for peer in arguments.peers:
                results += measure(peer, num_bytes, arguments.seconds, Path(folder))
                print(f"{peer} at {num_bytes // 1024} KiB done", file=sys.stderr, flush=True)
    machine = Machine(describe_machine(), len(os.sched_getaffinity(0)), os.getloadavg()[0], torch.__version__)
    lines = [*heading(machine), "", *table(results), "", *ratios(results)]
    print("\n".join(lines))
    rows = [dataclasses.asdict(result) | {"bytes_per_s": result.bytes_per_s} for result in results]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": dataclasses.asdict(machine), "results": rows}, indent=1) + "\n")
    arguments.out.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    plot(results, arguments.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
