"""Checks `autoscaling` of a stage and the policies in it before anything starts, and gives our policies short names.

Ray ignores settings that it does not know, and a policy that cannot be made stops Serve's controller from deciding.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig

APPLICATION = "application"


@dataclass(frozen=True, slots=True)
class ShippedPolicy:
    """A policy of ours: where it is, and of which stage; `APPLICATION` for all together."""

    path: str
    scope: str


POLICIES: Mapping[str, ShippedPolicy] = {
    "encoder_backlog": ShippedPolicy("cluster.autoscaling.encoder:EncoderBacklogPolicy", "encoder"),
    "prefill_backlog": ShippedPolicy("cluster.autoscaling.prefill:PrefillBacklogPolicy", "prefill"),
    "decode_load": ShippedPolicy("cluster.autoscaling.decode:DecodeLoadPolicy", "decode"),
    "balanced_stages": ShippedPolicy("cluster.autoscaling.balanced:BalancedStagesPolicy", APPLICATION),
}
_BY_PATH = {policy.path: name for name, policy in POLICIES.items()}
_POLICY_FIELDS = ("policy_function", "policy_kwargs")


class PolicyError(ValueError):
    """Settings of autoscaling that cannot be used: one line for each that is wrong."""


def resolve_autoscaling(stage: str, autoscaling: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's `autoscaling` as Ray's `autoscaling_config`: checked, short names of policies spelt out.

    Raises:
        PolicyError: something in it cannot be used.
    """
    where = f"{stage}.autoscaling"
    problems = [
        f"{where}.{name}: unknown setting of Ray's autoscaling_config{_near(name, AutoscalingConfig.model_fields)}"
        for name in autoscaling
        if name not in AutoscalingConfig.model_fields
    ]
    policy = autoscaling.get("policy")
    resolved = {name: value for name, value in autoscaling.items() if name != "policy"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray says them itself when the stage is deployed.
            AutoscalingConfig.model_validate(resolved)
    except ValidationError as error:
        problems += [_explain(where, part) for part in error.errors()]
    if policy is not None:
        try:
            resolved["policy"] = resolve_policy(f"{where}.policy", policy, stage)
        except PolicyError as error:
            problems.append(str(error))
    if problems:
        raise PolicyError("\n".join(problems))
    return resolved


def resolve_policy(where: str, policy: object, scope: str) -> dict[str, Any]:
    """A policy as Ray takes it, `{policy_function: PATH, policy_kwargs: {...}}`, its short name spelt out.

    Args:
        where: the setting that holds it, for messages.
        scope: the stage that it is for, or `APPLICATION`.

    Raises:
        PolicyError: there is no such policy, or it does not take these arguments, or is for something else.
    """
    if not isinstance(policy, Mapping) or not isinstance(policy.get("policy_function"), str):
        raise PolicyError(
            f"{where}: must be a mapping such as {{policy_function: {_of_scope(scope)[0]}, policy_kwargs: {{}}}}"
        )
    unknown = [
        f"{where}.{name}: unknown setting{_near(name, _POLICY_FIELDS)}" for name in {*policy} - {*_POLICY_FIELDS}
    ]
    if unknown:
        raise PolicyError("\n".join(sorted(unknown)))
    given = policy["policy_function"]
    path = POLICIES[given].path if given in POLICIES else given
    arguments = policy.get("policy_kwargs") or {}
    if not isinstance(arguments, Mapping):
        raise PolicyError(f"{where}.policy_kwargs: must be a mapping of the policy's arguments")
    shipped = POLICIES.get(_BY_PATH.get(path, ""))
    if shipped is not None and shipped.scope != scope:
        raise PolicyError(
            f"{where}.policy_function: {given!r} is for the {shipped.scope}; here fits {' or '.join(_of_scope(scope))}"
        )
    make = _import(f"{where}.policy_function", given, path)
    if not inspect.isclass(make):
        if arguments:
            raise PolicyError(f"{where}.policy_kwargs: {given!r} is a function, which Ray gives no arguments")
        return {"policy_function": path}
    try:
        # Others may have effects when they are made; that their arguments have the right names is seen without.
        inspect.signature(make).bind(**arguments)
        if shipped is not None:
            make(**arguments)
    except (TypeError, ValueError) as error:
        known = ", ".join(inspect.signature(make).parameters)
        raise PolicyError(f"{where}.policy_kwargs: {error}; {given!r} takes: {known}") from error
    return {"policy_function": path, "policy_kwargs": dict(arguments)}


def describe_policy(policy: Mapping[str, Any] | None) -> str:
    """A resolved policy in a few words, by its short name where it has one; of None Ray's own."""
    if policy is None:
        return "Ray's own, by target_ongoing_requests"
    path = str(policy["policy_function"])
    arguments = ", ".join(f"{name}={value}" for name, value in policy.get("policy_kwargs", {}).items())
    return f"{_BY_PATH.get(path, path)}({arguments})"


def _import(where: str, given: str, path: str) -> Callable[..., Any]:
    module, separator, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not separator or not module:
        raise PolicyError(
            f"{where}: {given!r} is neither a policy of ours ({', '.join(POLICIES)}) nor an import path "
            f"such as 'my.module:policy'{_near(given, POLICIES)}"
        )
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise PolicyError(f"{where}: {path!r} cannot be imported: {error}") from error
    if not callable(found):
        raise PolicyError(f"{where}: {module} has no policy {attribute!r}")
    policy: Callable[..., Any] = found
    return policy


def _of_scope(scope: str) -> list[str]:
    """The short names that fit; of a stage without one an example of a path."""
    return [name for name, policy in POLICIES.items() if policy.scope == scope] or ["a policy of your own"]


def _near(name: object, known: Iterator[str] | Mapping[str, Any] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _explain(where: str, error: Mapping[str, Any]) -> str:
    field = ".".join([where, *(str(part) for part in error["loc"])])
    return f"{field}: {str(error['msg']).removeprefix('Value error, ')}"
