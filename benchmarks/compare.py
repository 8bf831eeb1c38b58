"""Colocated vLLM against Triptych on the same cores, one after the other, under the same scenarios.

    python -m benchmarks.compare [--scenarios benchmarks/compare.yaml] [--json benchmarks/results/compare.json]

Makes a random checkpoint, serves it with vLLM's own server (one engine with tower and language model), then with
Triptych as E/P/D and as E/PD, float32 on the CPU, and prints the ratios that matter with the bounds that they are to
keep. Every stage that computes prompts or pictures gets the same number of threads; a decode stage of its own gets one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import describe_machine
from benchmarks.ratios import COLOCATED, ratio_lines, ratios
from benchmarks.service import plain_vllm, random_checkpoint, running_server, running_service
from cluster.cli.bench import all_answered, run_scenarios
from cluster.cli.bench.report import table_lines
from cluster.cli.bench.results import ScenarioResult
from configs.scenarios import ScenarioFile, load_scenarios

_MODEL = "sized"
_MAX_MODEL_LEN = 4096
_KV_CACHE_MIB = 512


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scenarios", type=Path, default=Path(__file__).with_name("compare.yaml"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each stage but decode")
    parser.add_argument("--only", choices=[COLOCATED, "E/P/D", "E/PD"], action="append", help="may be repeated")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    file = load_scenarios(arguments.scenarios)
    with tempfile.TemporaryDirectory(prefix="triptych-compare-") as name:
        folder = Path(name)
        checkpoint = random_checkpoint("qwen2_5_vl_half_second", folder)
        targets = {
            COLOCATED: lambda: _colocated(checkpoint, arguments.threads, folder),
            "E/P/D": lambda: _triptych(checkpoint, arguments.threads, folder, prefill=True),
            "E/PD": lambda: _triptych(checkpoint, arguments.threads, folder, prefill=False),
        }
        results: dict[str, list[ScenarioResult]] = {}
        for target, start in targets.items():
            if arguments.only is None or target in arguments.only:
                print(f"== {target}", flush=True)
                with start() as url:
                    results[target] = list(run_scenarios(url, _MODEL, file, num_warmups=2))
                print("\n".join(table_lines(results[target], file.slo)), flush=True)
    print("\n".join(ratio_lines(results)))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(_content(results, file, arguments.threads), indent=1) + "\n")
    return 0 if all(all_answered(measured) for measured in results.values()) else 1


@contextlib.contextmanager
def _colocated(checkpoint: Path, threads: int, folder: Path) -> Iterator[str]:
    """vLLM's own server: what `vllm serve` starts."""
    arguments, environment = plain_vllm(
        checkpoint, _MODEL, max_model_len=_MAX_MODEL_LEN, kv_cache_mib=_KV_CACHE_MIB, num_threads=threads
    )
    arguments += ["--limit-mm-per-prompt", '{"image": 16}']
    with running_server(arguments, environment, folder / "colocated.log") as url:
        yield url


@contextlib.contextmanager
def _triptych(checkpoint: Path, threads: int, folder: Path, *, prefill: bool) -> Iterator[str]:
    engine = {
        "num_threads": threads,
        "kv_cache_bytes": f"{_KV_CACHE_MIB} MiB",
        "engine_args": {"max_model_len": _MAX_MODEL_LEN, "enforce_eager": True},
    }
    settings: dict[str, Any] = {
        "model": str(checkpoint),
        "served_model_name": _MODEL,
        "device": "cpu",
        "dtype": "float32",
        "encoder": {"num_threads": threads},
        # A decode stage multiplies a few rows by each weight: more threads bring it little and cost the other stages.
        "decode": engine | {"num_threads": 1} if prefill else engine,
        **({"prefill": engine} if prefill else {}),
    }
    config = folder / "service.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with running_service(config, folder / "service.log") as url:
        yield url


def _content(results: Mapping[str, Sequence[ScenarioResult]], file: ScenarioFile, threads: int) -> dict[str, Any]:
    return {
        "machine": describe_machine(),
        "threads_per_engine": threads,
        "ratios": [
            {
                "name": ratio.name,
                "topology": topology,
                "ours_ms": round(ours * 1e3, 3),
                "colocated_ms": round(colocated * 1e3, 3),
                "ratio": round(ours / colocated, 3),
                "bound": ratio.bound,
            }
            for ratio, topology, ours, colocated in ratios(results)
        ],
        "targets": {name: [_without_each(result, file) for result in measured] for name, measured in results.items()},
    }


def _without_each(result: ScenarioResult, file: ScenarioFile) -> dict[str, Any]:
    return {name: value for name, value in result.to_json(file.slo).items() if name != "each"}


if __name__ == "__main__":
    raise SystemExit(main())
