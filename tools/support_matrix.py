"""Writes docs/support_matrix.md: what tests and benchmarks have shown of each model, cell by cell.

    python tools/support_matrix.py                        run the tests behind the cells, then write the page
    python tools/support_matrix.py --results FILE...      write it from JUnit XML files of earlier runs

A cell says what its tests said in that run, "not run" where they were not in it, and "not verified" where only a device
could tell.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support_matrix_cells import CLAIMS, MODELS, Backing, Model

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "support_matrix.md"
SPEED_FILES = ("benchmarks/results/encoder_bfloat16.json", "benchmarks/results/encoder_float32.json")
NOT_VERIFIED = "not verified"
_CASE = "case "
_ASCEND_CASES = "tests.npu.npu_cases"
_ACCURACY = re.compile(r"accuracy (\w+)")


@dataclass(frozen=True)
class Outcome:
    """One test of a run: its file's dotted name, its own with parameters, and what it noted."""

    file: str
    name: str
    passed: bool
    skipped: bool
    notes: tuple[tuple[str, str], ...]


def read_outcomes(files: Iterable[Path]) -> list[Outcome]:
    """All tests of some JUnit XML files."""
    outcomes = []
    for file in files:
        for case in ElementTree.parse(file).iter("testcase"):
            notes = tuple((note.get("name", ""), note.get("value", "")) for note in case.iter("property"))
            for name, value in notes:
                # The Ascend cases run inside one test, which notes the outcome of each.
                if name.startswith(_CASE):
                    word = name.removeprefix(_CASE)
                    outcomes.append(Outcome(_ASCEND_CASES, word, value == "passed", value == "skipped", ()))
            failed = case.find("failure") is not None or case.find("error") is not None
            skipped = case.find("skipped") is not None
            outcomes.append(Outcome(case.get("classname", ""), case.get("name", ""), not failed, skipped, notes))
    return outcomes


def belongs(outcome: Outcome, tests: Backing) -> bool:
    """Whether an outcome is of these tests; the name's brackets hold parameters joined by "-"."""
    if outcome.file != tests.file.removesuffix(".py").replace("/", "."):
        return False
    name, _, parameters = outcome.name.partition("[")
    if name not in tests.names:
        return False
    return tests.parameter is None or f"-{tests.parameter}-" in f"-{parameters.removesuffix(']')}-"


def verdict(outcomes: Sequence[Outcome], backing: Sequence[Backing]) -> str:
    """What a cell says of its tests: "yes" when all passed and each of them is among those that ran."""
    if not backing:
        return "–"
    for tests in backing:
        for name in tests.names:
            of_name = [o for o in outcomes if belongs(o, tests) and o.name.partition("[")[0] == name]
            if any(not outcome.passed for outcome in of_name):
                return "**failed**"
            if all(outcome.skipped for outcome in of_name):
                return "not run"
    return "yes"


def accuracy(outcomes: Sequence[Outcome], model: Model, dtype: str) -> str:
    """The largest distance that the parity tests noted in this type."""
    if verdict(outcomes, model.tests["accuracy"]) == "**failed**":
        return "**failed**"
    noted = [
        float(value)
        for outcome in outcomes
        if any(belongs(outcome, tests) for tests in model.tests["accuracy"])
        for name, value in outcome.notes
        if (found := _ACCURACY.fullmatch(name)) and found[1] == dtype
    ]
    return f"{max(noted):.1e}" if noted else "not run"


def read_speed(root: Path) -> list[dict[str, Any]]:
    """Rows of the encoder benchmark, of those of its files that there are."""
    rows: list[dict[str, Any]] = []
    for name in SPEED_FILES:
        if (root / name).exists():
            rows += json.loads((root / name).read_text())["rows"]
    return rows


def speed(rows: Sequence[dict[str, Any]], model: Model, contender: str, dtype: str) -> str:
    """How many times as long the contender took as Triptych, case by case; for two ranks, how many times as fast."""
    found = [
        f"{row['case']} {1 / row['against'] if contender == 'two_ranks' else row['against']:.2f}"
        for row in rows
        if (row["model"], row["contender"], row["dtype"]) == (model.benchmark, contender, dtype) and row["against"]
    ]
    return "; ".join(found) if found else "not measured"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def render(outcomes: Sequence[Outcome], speeds: Sequence[dict[str, Any]]) -> str:
    """The page."""
    lines = [
        "# Support matrix",
        "",
        "Written by `python tools/support_matrix.py` from test results and the kept results of the encoder",
        'benchmark; not by hand. Everything here ran on a CPU. "not verified" is what only a device could tell,',
        '"not run" what was not part of the run that this page was made from.',
        *_models(outcomes),
        *_accuracy(outcomes),
        *_speed(speeds),
        *_devices(outcomes),
        *_known_issues(),
    ]
    return "\n".join(lines) + "\n"


def _models(outcomes: Sequence[Outcome]) -> list[str]:
    columns = [claim for claim in CLAIMS if claim.key != "accuracy"]
    rows = (
        [
            model.name,
            *(verdict(outcomes, model.tests.get(claim.key, ())) for claim in columns),
            NOT_VERIFIED,
            verdict(outcomes, [tests for backing in model.tests.values() for tests in backing]),
            "[models](models.md)",
        ]
        for model in MODELS
    )
    return [
        *("", "## Models", ""),
        *table(["model", *(claim.title for claim in columns), "graph", "CI", "docs"], rows),
        "",
        *(f"- **{claim.title}**: {claim.meaning}" for claim in columns),
        "- **graph**: engines may run their graph modes (`engine_args`), which need a device; towers run eagerly.",
        "- **CI**: all tests behind the row passed; `.ci/run` runs them at every change.",
    ]


def _accuracy(outcomes: Sequence[Outcome]) -> list[str]:
    rows = ([m.name, accuracy(outcomes, m, "float32"), accuracy(outcomes, m, "bfloat16")] for m in MODELS)
    return [
        *("", "## Accuracy against Hugging Face", ""),
        "Towers of the published width and reduced depth on batches of mixed sizes; random weights. The largest",
        "distance over all batches: in float32 of a value (bound 1e-4), in bfloat16 of an item's tokens in norm,",
        "relative, from Hugging Face's tower in bfloat16 (bound 2e-2).",
        "",
        *table(["model", "float32", "bfloat16"], rows),
    ]


def _speed(speeds: Sequence[dict[str, Any]]) -> list[str]:
    contenders = {"huggingface": "Hugging Face (sdpa)", "vllm": "vLLM's tower", "two_ranks": "two ranks"}
    rows = (
        [model.name, dtype, *(speed(speeds, model, contender, dtype) for contender in contenders)]
        for model in MODELS
        for dtype in ("bfloat16", "float32")
    )
    return [
        *("", "## Speed", ""),
        "One process and one thread each, published width, reduced depth (`python -m benchmarks.encoder`). How many",
        "times as long as Triptych the other took: above 1, Triptych is faster. Two ranks: how many times as fast as",
        "one rank. Models of one architecture share a row of the benchmark.",
        "",
        *table(["model", "type", *contenders.values()], rows),
    ]


def _devices(outcomes: Sequence[Outcome]) -> list[str]:
    rows = (
        [
            model.name,
            verdict(outcomes, model.tests["cpu"]),
            NOT_VERIFIED,
            NOT_VERIFIED,
            verdict(outcomes, model.tests["ascend"]),
        ]
        for model in MODELS
    )
    return [
        *("", "## Devices", ""),
        *table(["model", "CPU", "CUDA", "Ascend NPU", "Ascend's operators, emulated on a CPU"], rows),
        *("", "What the emulation shows, and what it cannot: [ascend.md](ascend.md)."),
    ]


def _known_issues() -> list[str]:
    rows = ([model.name, "; ".join(model.issues) or "none known"] for model in MODELS)
    return ["", "## Known issues", "", *table(["model", "issues"], rows)]


def run_tests(folder: Path) -> list[Path]:
    """Run the files of all cells once; returns their JUnit XML."""
    files = {tests.file for model in MODELS for backing in model.tests.values() for tests in backing}
    files = files - {"tests/npu/npu_cases.py"} | {"tests/npu/test_npu_backend.py"}
    results = folder / "tests.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"--junitxml={results}", *sorted(files)], cwd=ROOT, check=False
    )
    return [results]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, nargs="+", help="JUnit XML of tests that ran before")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = read_outcomes(arguments.results or run_tests(Path(folder)))
    page = render(outcomes, read_speed(ROOT))
    arguments.page.write_text(page)
    print(f"wrote {arguments.page} from {len(outcomes)} tests")
    return 1 if "**failed**" in page else 0


if __name__ == "__main__":
    sys.exit(main())
