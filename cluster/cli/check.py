"""`triptych check`: says whether a deployment file can be used and what it would start; starts nothing."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.cli.quiet import quiet

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from cluster.plan import DeploymentPlan
    from configs import TriptychConfig
    from llm_workers.engine_config import EngineRole


def add_arguments(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "check", help="validate a deployment file and show its plan", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="deployment file, or Serve config file of one")
    parser.set_defaults(run=lambda parsed: run(parsed.config))


def run(path: Path) -> int:
    """Print the plan; returns 1 when the settings cannot be used."""
    from cluster.plan import application_policy, plan_deployments
    from configs import ConfigError, load_service

    try:
        service = load_service(path)
        config = service.config
        plans = plan_deployments(config)
        policy = application_policy(service.autoscaling_policy, plans)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(plan_lines(config, plans, policy)), flush=True)
    with quiet():
        problems = unknown_engine_args(config)
    if problems:
        print("\n".join([f"{path} cannot be used:", *(f"  {problem}" for problem in problems)]), file=sys.stderr)
        return 1
    print(f"{path} can be used")
    return 0


def plan_lines(
    config: TriptychConfig, plans: Mapping[str, DeploymentPlan], policy: Mapping[str, Any] | None
) -> list[str]:
    """What the settings would start, for people.

    Args:
        policy: the application's autoscaling policy.
    """
    from cluster.autoscaling.catalogue import describe_policy
    from cluster.plan import total_resources

    rows = [("stage", "replicas", "ranks each", "resources each", "requests each")]
    rows += [
        (plan.name, _replicas(plan), str(plan.num_ranks), _amounts(plan.resources), str(plan.max_ongoing_requests))
        for plan in plans.values()
    ]
    lines = [
        f"{config.topology} service {config.api_model_name!r} on {config.device} in {config.dtype}",
        f"checkpoint: {config.model}",
        f"embedding path: {', '.join(config.transfer.channels) if config.encoder else 'none'}",
        f"KV cache path: {config.kv_transfer.connector if config.prefill else 'none'}",
        "",
        *_table(rows),
    ]
    for plan in plans.values():
        lines += [f"{plan.name} environment: {name}={value}" for name, value in plan.environment.items()]
    for plan in plans.values():
        if plan.autoscaling is not None and policy is None:
            lines.append(f"{plan.name} autoscaling: {describe_policy(plan.autoscaling.get('policy'))}")
    if policy is not None:
        scaled = ", ".join(plan.name for plan in plans.values() if plan.autoscaling is not None)
        lines.append(f"autoscaling of {scaled}: {describe_policy(policy)}")
    num_replicas = sum(plan.max_replicas for plan in plans.values())
    lines.append(f"total: at most {num_replicas} replicas; resources: {_amounts(total_resources(plans))}")
    return lines


def unknown_engine_args(config: TriptychConfig) -> list[str]:
    """One line for each name in engine_args that vLLM's engine does not take."""
    stages = {"prefill": config.prefill, "decode": config.decode}
    given = {name: stage.engine_args for name, stage in stages.items() if stage is not None and stage.engine_args}
    if not given:
        return []
    # vLLM is imported here, which takes seconds; nothing else of this command needs it.
    from llm_workers.engine_config import engine_args

    role: EngineRole = "decode"
    bare = config.model_copy(update={role: config.decode.model_copy(update={"engine_args": {}})})
    known = [field.name for field in dataclasses.fields(engine_args(bare, role, None))]
    problems = []
    for stage_name, arguments in given.items():
        for argument in arguments:
            if argument not in known:
                near = difflib.get_close_matches(argument, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                problems.append(f"{stage_name}.engine_args.{argument}: not an argument of vllm.AsyncEngineArgs{hint}")
    return problems


def _replicas(plan: DeploymentPlan) -> str:
    if plan.autoscaling is None:
        return str(plan.num_replicas)
    return f"{plan.autoscaling.get('min_replicas', 1)} to {plan.max_replicas}"


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "none"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
