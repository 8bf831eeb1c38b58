"""What `benchmarks.transfer` measured, for people: a table, the targets, a picture."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.plot import chart_width, log_chart, svg

_MIB = 2**20
KINDS = ("fetch", "stream", "handover", "parked", "busy fetch", "busy parked")
# Ours, the other, which time, how much faster at least, from which size on.
_RATIOS = [
    ("zmq", "socket", "fetch", 0.75, 4 * _MIB),
    ("zmq", "socket", "stream", 0.75, 4 * _MIB),
    ("shm", "nixl", "fetch", 1.0, 0),
    ("shm held", "nixl", "fetch", 1.0, 0),
    ("shm held", "ec_example", "fetch", 3.0, 0),
    ("shm held", "nixl", "handover", 1.0, 0),
    ("shm held", "ec_example", "handover", 3.0, 0),
]
_BUSY_P50_S, _BUSY_P99_S = 1e-3, 5e-3


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


def heading(machine: Machine) -> list[str]:
    """Where it was measured, and whether the figures can be believed. The benchmark itself is a load of about 2."""
    lines = [f"{machine.name}; torch {machine.torch}; load {machine.load:.1f}"]
    if machine.load > machine.num_cpus + 1:
        lines += [
            f"Other work ran on this machine (load {machine.load:.0f} on {machine.num_cpus} cores), so absolute times",
            "are too long. The peers took turns, so it met them alike.",
        ]
    return lines


def table(results: list[Result]) -> list[str]:
    """The results by time and size."""
    lines = [f"{'kind':11} {'size':>9}  {'peer':10} {'p50 ms':>9} {'p99 ms':>9} {'GB/s':>7} {'rounds':>6}"]
    for kind in KINDS:
        for num_bytes in sorted({result.num_bytes for result in results if result.kind == kind}):
            lines.append("")
            for result in results:
                if (result.kind, result.num_bytes) == (kind, num_bytes):
                    times = f"{result.p50_s * 1e3:9.3f} {result.p99_s * 1e3:9.3f} {result.bytes_per_s / 1e9:7.2f}"
                    lines.append(
                        f"{kind:11} {num_bytes // 1024:>5} KiB  {result.peer:10} {times} {result.num_rounds:6}"
                    )
    return lines


def ratios(results: list[Result]) -> list[str]:
    """What the channels are held to."""
    p50 = {(result.peer, result.kind, result.num_bytes): result.p50_s for result in results}
    lines = []
    for ours, other, kind, target, min_bytes in _RATIOS:
        for num_bytes in sorted({result.num_bytes for result in results}):
            pair = (ours, kind, num_bytes), (other, kind, num_bytes)
            if num_bytes >= min_bytes and all(key in p50 for key in pair):
                ratio = p50[pair[1]] / p50[pair[0]]
                text = f"{ours} / {other} ({kind}) at {num_bytes // 1024} KiB"
                lines.append(f"{text:45} {ratio:6.2f}  target {target:.2f}  {_verdict(ratio >= target)}")
    for result in results:
        if result.peer.startswith("shm") and result.kind.startswith("busy"):
            times = f"p50 {result.p50_s * 1e3:.3f} ms, p99 {result.p99_s * 1e3:.3f} ms"
            reached = result.p50_s <= _BUSY_P50_S and result.p99_s <= _BUSY_P99_S
            text = f"{result.peer} ({result.kind}) at {result.num_bytes // 1024} KiB"
            lines.append(f"{text:45} {times}  target 1 ms, 5 ms  {_verdict(reached)}")
    return lines


def picture(results: list[Result]) -> str:
    """Bandwidth by size as SVG: one chart for each kind that several peers have."""
    charts: list[str] = []
    for kind in ("fetch", "stream", "handover"):
        curves: dict[str, list[tuple[float, float]]] = {}
        for result in results:
            if result.kind == kind:
                curves.setdefault(result.peer, []).append((result.num_bytes, result.bytes_per_s / 1e9))
        if curves:
            charts.append(log_chart(kind, "embedding", "GB/s (median)", curves, chart_width() * len(charts)))
    return svg(charts)


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"
