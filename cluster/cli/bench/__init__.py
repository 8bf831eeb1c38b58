"""`triptych bench`: drives a service, or any OpenAI server, with scenarios and reports goodput and latencies."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cli.quiet import quiet

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from cluster.cli.bench.results import ScenarioResult
    from configs.scenarios import ScenarioFile

__all__ = ["add_arguments", "all_answered", "run", "run_scenarios"]

_TIMEOUT_S = 30.0


def add_arguments(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser("bench", help="measure a server under load", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "target", metavar="URL_OR_CONFIG", help="a running OpenAI server, or a deployment file to serve meanwhile"
    )
    parser.add_argument("--scenarios", type=Path, metavar="F", help="default: configs/bench/default.yaml")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this scenario; may be repeated")
    parser.add_argument("--model", metavar="NAME", help="served model name (default: the server's own)")
    parser.add_argument("--json", type=Path, metavar="F", help="write all figures here")
    parser.add_argument("--html", type=Path, metavar="F", help="write a page with plots here")
    parser.add_argument(
        "--warmups", type=int, default=2, metavar="N", help="before each scenario (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the scenarios and report; returns 1 when the server cannot be asked, or answered no request of a scenario."""
    with quiet():
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from cluster.cli.bench.report import table_lines, to_html, to_json
    from cluster.cli.bench.target import TargetError, open_target
    from configs import ConfigError
    from configs.scenarios import DEFAULT_SCENARIOS, load_scenarios

    try:
        file = _chosen(load_scenarios(arguments.scenarios or DEFAULT_SCENARIOS), arguments.only)
        with open_target(arguments.target, arguments.model) as target:
            results = list(run_scenarios(target.base_url, target.model, file, arguments.warmups))
    except (ConfigError, TargetError) as error:
        print(f"triptych bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\n".join(table_lines(results, file.slo)))
    about = target.describe()
    if arguments.json is not None:
        arguments.json.write_text(to_json(about, results, file.slo), encoding="utf-8")
    if arguments.html is not None:
        arguments.html.write_text(to_html(about, results, file.slo), encoding="utf-8")
    return 0 if all_answered(results) else 1


def run_scenarios(base_url: str, model: str, file: ScenarioFile, num_warmups: int) -> Iterator[ScenarioResult]:
    """The results one after the other; what is under way is said on standard error."""
    from cluster.cli.bench.load import run_scenario
    from cluster.cli.bench.questions import make_questions
    from cluster.cli.bench.results import ScenarioResult
    from cluster.cli.bench.stage_times import StageTimes
    from cluster.cli.bench.target import refusal_of_media

    for scenario in file.scenarios:
        print(f"{scenario.name}: {scenario.num_requests} requests", file=sys.stderr, flush=True)
        questions = make_questions(scenario)
        refusal = refusal_of_media(base_url, model, questions)
        if refusal is not None:
            yield ScenarioResult.of_none(scenario.name, refusal)
            continue
        times = StageTimes(base_url)
        result = run_scenario(base_url, model, scenario, questions, num_warmups)
        yield dataclasses.replace(result, stages=times.since_then())


def all_answered(results: Sequence[ScenarioResult]) -> bool:
    """Whether every scenario that was asked was answered at least once, and there was one."""
    asked = [result for result in results if result.left_out is None]
    return bool(asked) and all(result.good for result in asked)


def _chosen(file: ScenarioFile, names: list[str]) -> ScenarioFile:
    """The scenarios of these names; all when none is named."""
    from configs import ConfigError

    known = [scenario.name for scenario in file.scenarios]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"no scenario is named {unknown[0]!r}; there are: {', '.join(known)}")
    chosen = tuple(scenario for scenario in file.scenarios if not names or scenario.name in names)
    return file.model_copy(update={"scenarios": chosen})
