"""Encoders against others at equal threads: a table and JSON.

Each contender runs alone in a process of its own, at the model's real width and reduced depth, on rows already
prepared: Triptych's tower, Triptych's over two ranks, Hugging Face's (sdpa), vLLM's own (Qwen-VL; for Qwen2-Audio
vLLM runs Hugging Face's). The best of a few passes counts. `cpu` is the processor time of the process that took most:
steadier than the seconds where the machine is not idle, but without waiting. `of matrix` is the rate of operations
against that of one large matrix product of the same width, and `differs` how far the tokens are from Hugging Face's,
relative to them.

    python -m benchmarks.encoder [--models qwen2_vl qwen3_vl] [--cases 1080p] [--dtypes bfloat16]
        [--contenders triptych two_ranks huggingface vllm] [--json benchmarks/results/encoder.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.encoder_contender import Order
from benchmarks.encoder_models import CASES, FAMILIES, write_checkpoint
from benchmarks.machine import describe_machine

CONTENDERS = ("triptych", "two_ranks", "huggingface", "vllm")
VLLM_MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Row:
    """One contender on one case.

    Attributes:
        against: its time over Triptych's on one rank: above 1, Triptych is faster; None where that was not run.
        of_matrix: its rate of operations over the matrix product's, on as many threads; None for several ranks.
        differs: from Hugging Face's tokens, in norm and relative; None where those were not made.
    """

    model: str
    depth: int
    case: str
    dtype: str
    contender: str
    num_tokens: int
    seconds: float
    cpu_seconds: float
    against: float | None
    of_matrix: float | None
    differs: float | None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--threads", type=int, default=1, help="of each contender, and of each of two ranks")
    parser.add_argument("--depth", type=int, help="layers; by default 2 or 4 by model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for model in arguments.models:
        depth = arguments.depth or FAMILIES[model].depth
        with tempfile.TemporaryDirectory(prefix="triptych-encoder-") as folder:
            write_checkpoint(Path(folder), model, depth)
            for case in arguments.cases:
                if case in FAMILIES[model].cases:
                    for dtype in arguments.dtypes:
                        rows += compare(Path(folder), model, depth, case, dtype, arguments)
                        print("\n".join(table(rows)), flush=True)
    if arguments.json:
        figures = {"machine": describe_machine(), "threads": arguments.threads, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def compare(folder: Path, model: str, depth: int, case: str, dtype: str, arguments: argparse.Namespace) -> list[Row]:
    """All contenders on one case."""

    def run(contender: str) -> dict[str, Any]:
        order = Order(
            contender="triptych" if contender == "two_ranks" else contender,
            model=model,
            case=case,
            dtype=dtype,
            threads=arguments.threads,
            ranks=2 if contender == "two_ranks" else 1,
            repeats=arguments.repeats,
            checkpoint=str(folder),
            output=str(folder / f"{contender}.safetensors"),
        )
        print(f"{model} {case} {dtype}: {contender}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.encoder_contender", json.dumps(asdict(order))]
        done = subprocess.run(
            ["env", f"OMP_NUM_THREADS={arguments.threads}", *command],
            stdout=subprocess.PIPE,
            timeout=_TIMEOUT_S,
            check=True,
        )
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return figures

    def tokens(contender: str) -> torch.Tensor:
        return load_file(folder / f"{contender}.safetensors")["tokens"]

    chosen = [name for name in arguments.contenders if name != "vllm" or model in VLLM_MODELS]
    matrix = run("matrix")
    figures = {name: run(name) for name in chosen}
    reference = tokens("huggingface") if "huggingface" in figures else None
    rows = []
    for name, found in figures.items():
        ours = figures.get("triptych")
        differs = None
        if reference is not None and name != "huggingface":
            differs = float((tokens(name) - reference).norm() / reference.norm())
        rows.append(
            Row(
                model=model,
                depth=depth,
                case=case,
                dtype=dtype,
                contender=name,
                num_tokens=found["num_tokens"],
                seconds=found["seconds"],
                cpu_seconds=found["cpu_seconds"],
                against=found["seconds"] / ours["seconds"] if ours else None,
                of_matrix=None if name == "two_ranks" else matrix["operations"] / found["seconds"] / matrix["rate"],
                differs=differs,
            )
        )
    return rows


def table(rows: list[Row]) -> list[str]:
    """The figures for people."""
    lines = ["| model | case | type | contender | tokens | seconds | cpu | time / Triptych's | of matrix | differs |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        against = "" if row.against is None else f"{row.against:.2f}"
        of_matrix = "" if row.of_matrix is None else f"{row.of_matrix:.0%}"
        differs = "" if row.differs is None else f"{row.differs:.1e}"
        lines.append(
            f"| {row.model} ({row.depth} layers) | {row.case} | {row.dtype} | {row.contender} | {row.num_tokens} "
            f"| {row.seconds:.2f} | {row.cpu_seconds:.2f} | {against} | {of_matrix} | {differs} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
