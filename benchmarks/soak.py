"""Encoders and prefill workers as processes that exchange embeddings for minutes while some are killed at random.

Every payload that arrives is checked against the CRC its producer took; every fetch has one outcome; at the end nothing
may be left: leases, arena blocks, files under /dev/shm, descriptors, memory. The first process of each kind is never
killed, so that its descriptors and memory can be compared with what they were after half of the time.

Usage: python -m benchmarks.soak [--minutes 10] [--seed 1]
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.soak_processes import LEASE_S, Item, Report, consume, produce

NUM_EACH = 4
_SECONDS_BETWEEN_KILLS = 4.0
_WAIT_S = 120.0
_MAX_MORE_DESCRIPTORS = 32
"""Connections to the processes that are alive differ from moment to moment; a leak grows with every kill."""
_MAX_MORE_BYTES = 256 * 2**20
"""Frames under way do too: every lease at its largest is 144 MiB, and freed memory may stay with the process."""
_MAX_QUEUED = 64


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    num_sent: int = 0
    num_done: int = 0


@dataclass
class Figures:
    """What a soak counted; `faults` is empty when all is well."""

    outcomes: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0
    num_kills: int = 0
    num_lost_with_consumer: int = 0
    num_dropped: int = 0
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"delivered {self.outcomes['ok']} embeddings, {self.num_bytes / 2**30:.2f} GiB, every checksum right"
            if not self.outcomes["wrong"]
            else f"WRONG BYTES {self.outcomes['wrong']} times",
            f"outcomes {dict(self.outcomes)}; {self.num_lost_with_consumer} died with their consumer",
            f"{self.num_kills} processes killed; {self.num_dropped} items left to their lease",
            *(f"FAULT {fault}" for fault in self.faults),
        ]


class Soak:
    """Runs the processes and carries references from producers to consumers, as the pipeline would."""

    def __init__(self, seed: int) -> None:
        self.figures = Figures()
        self._random = random.Random(seed)
        # Forked from a process that has imported everything and started nothing, so that a new one is there at once.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["benchmarks.soak_processes"])
        self._process_ids: set[int] = set()
        self._producers = [self._start(produce, number) for number in range(NUM_EACH)]
        self._consumers = [self._start(consume, number) for number in range(NUM_EACH)]
        self._early: list[Report] = []

    def run(self, seconds: float) -> Figures:
        """All of it; every process has ended when it returns."""
        try:
            for worker in [*self._producers, *self._consumers]:
                self._ask(worker)
            self._exchange(seconds / 2)
            self._early = [self._ask(self._producers[0]), self._ask(self._consumers[0])]
            self._exchange(seconds / 2)
            self._settle()
        finally:
            for worker in [*self._producers, *self._consumers]:
                worker.process.kill()
                worker.process.join(_WAIT_S)
        return self.figures

    def _exchange(self, seconds: float) -> None:
        end, next_kill = time.monotonic() + seconds, time.monotonic() + _SECONDS_BETWEEN_KILLS
        while time.monotonic() < end:
            self._carry(0.05)
            if time.monotonic() > next_kill:
                next_kill = time.monotonic() + _SECONDS_BETWEEN_KILLS * self._random.uniform(0.5, 1.5)
                self._kill_one()

    def _carry(self, timeout_s: float) -> None:
        by_pipe = {worker.pipe: worker for worker in [*self._producers, *self._consumers]}
        for pipe in wait(list(by_pipe), timeout_s):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                message = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                self.figures.faults.append(f"process {worker.process.name} ended with {worker.process.exitcode}")
                raise RuntimeError(self.figures.faults[-1]) from None
            if isinstance(message, Item):
                self._hand_over(message)
            else:
                outcome, num_bytes = message
                worker.num_done += 1
                self.figures.outcomes[outcome] += 1
                self.figures.num_bytes += num_bytes
                if outcome == "wrong":
                    self.figures.faults.append("wrong bytes were delivered")

    def _hand_over(self, item: Item) -> None:
        consumer = self._random.choice(self._consumers)
        if consumer.num_sent - consumer.num_done >= _MAX_QUEUED or self._random.random() < 0.02:
            self.figures.num_dropped += 1
            return
        consumer.num_sent += 1
        consumer.pipe.send(item)

    def _kill_one(self) -> None:
        kind, workers = self._random.choice([(produce, self._producers), (consume, self._consumers)])
        number = self._random.randrange(1, NUM_EACH)
        victim = workers[number]
        victim.process.kill()
        victim.process.join(_WAIT_S)
        while victim.pipe.poll():
            try:
                message = victim.pipe.recv()
            except (EOFError, OSError):
                break
            if not isinstance(message, Item):
                victim.num_done += 1
                self.figures.outcomes[message[0]] += 1
                self.figures.num_bytes += message[1]
        self.figures.num_lost_with_consumer += victim.num_sent - victim.num_done
        self.figures.num_kills += 1
        workers[number] = self._start(kind, number)

    def _settle(self) -> None:
        """Stop making, let everything end, then look for what is left."""
        for producer in self._producers:
            producer.pipe.send("pause")
        end = time.monotonic() + _WAIT_S
        while any(consumer.num_done < consumer.num_sent for consumer in self._consumers):
            if time.monotonic() > end:
                self.figures.faults.append("some fetches have no outcome")
                return
            self._carry(0.1)
        settled_by = time.monotonic() + LEASE_S + 10
        reports = [self._ask(producer) for producer in self._producers]
        while time.monotonic() < settled_by and any(report.num_leases or report.bytes_in_use for report in reports):
            time.sleep(0.2)
            reports = [self._ask(producer) for producer in self._producers]
        for report in reports:
            if report.num_leases or report.bytes_in_use:
                self.figures.faults.append(f"a producer still holds {report} after the lease time")
        self._compare(self._early[0], reports[0], "producer")
        self._compare(self._early[1], self._ask(self._consumers[0]), "consumer")
        for worker in [*self._producers, *self._consumers]:
            worker.pipe.send("stop")
            worker.process.join(_WAIT_S)
            if worker.process.exitcode != 0:
                self.figures.faults.append(f"{worker.process.name} ended with {worker.process.exitcode}")
        left = self._left_files()
        if left:
            self.figures.faults.append(f"left under /dev/shm: {sorted(left)}")

    def _left_files(self) -> set[str]:
        from transfer.channels.arena import PREFIX, sweep_dead_arenas

        sweep_dead_arenas()  # what a killed process leaves goes when the next encoder starts
        arenas = [path.name for path in Path("/dev/shm").glob(f"{PREFIX}*")]
        return {name for name in arenas if int(name.removeprefix(PREFIX).partition("-")[0]) in self._process_ids}

    def _compare(self, early: Report, late: Report, kind: str) -> None:
        if late.num_descriptors > early.num_descriptors + _MAX_MORE_DESCRIPTORS:
            self.figures.faults.append(f"{kind}: {early.num_descriptors} descriptors became {late.num_descriptors}")
        if late.resident_bytes > early.resident_bytes + _MAX_MORE_BYTES:
            self.figures.faults.append(f"{kind}: {early.resident_bytes} resident bytes became {late.resident_bytes}")
        if late.num_pending:
            self.figures.faults.append(f"{kind}: {late.num_pending} fetches pending at the end")

    def _ask(self, worker: _Worker) -> Report:
        worker.pipe.send("report")
        end = time.monotonic() + _WAIT_S
        while time.monotonic() < end:
            if worker.pipe.poll(1.0):
                message = worker.pipe.recv()
                if isinstance(message, Report):
                    return message
                if isinstance(message, Item):
                    self.figures.num_dropped += 1
                else:
                    worker.num_done += 1
                    self.figures.outcomes[message[0]] += 1
                    self.figures.num_bytes += message[1]
        raise RuntimeError(f"{worker.process.name} does not answer")

    def _start(self, target: object, number: int) -> _Worker:
        near, far = self._context.Pipe()
        seed = self._random.getrandbits(32)
        name = f"{getattr(target, '__name__', 'process')} {number}"
        process = self._context.Process(target=target, args=(far, seed), name=name, daemon=True)  # type: ignore[arg-type]
        process.start()
        far.close()
        assert process.pid is not None
        self._process_ids.add(process.pid)
        return _Worker(process, near)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    figures = Soak(arguments.seed).run(arguments.minutes * 60)
    print("\n".join(figures.lines()))
    return 1 if figures.faults else 0


if __name__ == "__main__":
    sys.exit(main())
