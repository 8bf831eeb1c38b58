"""The figures of two servers under the same scenarios, one over the other, and what each ratio may be at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.cli.bench.results import ScenarioResult, percentile

COLOCATED = "colocated"


@dataclass(frozen=True)
class Ratio:
    """A figure of Triptych over the same figure of the colocated server; `bound` is what it may be at most."""

    name: str
    scenario: str
    figure: Callable[[ScenarioResult], float]
    bound: float | None


def median_ttft_s(result: ScenarioResult) -> float:
    """Median time to first token."""
    return percentile(result.ttfts_s(), 50)


def text_tpot_p99_s(result: ScenarioResult) -> float:
    """The 99th percentile of the time per output token of requests without media."""
    return percentile([r.tpot_s for r in result.good if r.tpot_s is not None and not r.num_media], 99)


RATIOS = (
    Ratio("median TTFT, text", "text", median_ttft_s, None),
    Ratio("median TTFT, 1 image", "1 image", median_ttft_s, 1.3),
    Ratio("median TTFT, 4 images", "4 images", median_ttft_s, None),
    Ratio("median TTFT, repeated prefix", "repeated prefix", median_ttft_s, None),
    Ratio("median TTFT, repeated images", "repeated images", median_ttft_s, 0.8),
    Ratio("p99 TPOT of text in an image burst", "image burst", text_tpot_p99_s, 0.6),
)


def ratios(results: Mapping[str, Sequence[ScenarioResult]]) -> Iterator[tuple[Ratio, str, float, float]]:
    """(ratio, topology, figure of Triptych, figure of the colocated server) of what was measured on both."""
    colocated = {result.name: result for result in results.get(COLOCATED, ())}
    for topology, measured in results.items():
        for ratio in RATIOS:
            ours = next((result for result in measured if result.name == ratio.scenario), None)
            if topology != COLOCATED and ours is not None and ratio.scenario in colocated:
                yield ratio, topology, ratio.figure(ours), ratio.figure(colocated[ratio.scenario])


def ratio_lines(results: Mapping[str, Sequence[ScenarioResult]]) -> list[str]:
    """One line per ratio, with its bound where it has one."""
    lines = []
    for ratio, topology, ours, colocated in ratios(results):
        bound = "" if ratio.bound is None else f"   at most {ratio.bound:g}"
        lines.append(
            f"{ratio.name:<36}{topology:<7}{ours * 1e3:>9.1f} ms over {colocated * 1e3:>9.1f} ms ="
            f"{ours / colocated:>6.2f}{bound}"
        )
    return lines
