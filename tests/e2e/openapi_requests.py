"""Requests that schemathesis generates from the OpenAPI document that a service serves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hypothesis
import schemathesis
from schemathesis import APIOperation, BaseSchema, Case, GenerationMode

_MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
# Of an operation with ever more combinations of nested values the first so many are enough.
_MOST_BOUNDARIES = 6000
_FUZZED_PART = 0.1
# Every so many cases stay as they were generated.
_AS_GENERATED_EVERY = 8
_TEXT = "What is a triptych?"
_MESSAGES = [{"role": "user", "content": _TEXT}]
_NEEDED: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {"messages": _MESSAGES, "max_tokens": 4},
    "/v1/chat/completions/batch": {"messages": [_MESSAGES, _MESSAGES], "max_tokens": 4},
    "/v1/completions": {"prompt": _TEXT, "max_tokens": 4},
    "/v1/messages": {"messages": _MESSAGES, "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": _MESSAGES},
    "/v1/responses": {"input": _TEXT, "max_output_tokens": 4},
}
_EMPTY_IS_WRONG = frozenset({"tools", "tool_choice", "allowed_token_ids", "prompt_embeds", "bad_words"})


def generated_requests(document: Mapping[str, Any], model: str, number: int, seed: int) -> list[Case]:
    """`number` requests and a few, over all operations: values at the boundaries of each field, and random bodies.

    Most are such that they can get as far as the engines: they name `model`, have a prompt and ask for few tokens where
    they say nothing of these themselves.
    """
    schema = schemathesis.openapi.from_dict(dict(document))
    operations = [result.ok() for result in schema.get_all_operations()]
    boundaries = {operation.label: _boundaries(schema, operation) for operation in operations}
    num_fuzzed = int(number * _FUZZED_PART)
    cases = list(_shares(list(boundaries.values()), number - num_fuzzed))
    with_body = [operation for operation in operations if operation.body]
    for operation in with_body:
        for mode in _MODES:
            cases += _fuzzed(operation, mode, -(-num_fuzzed // (len(_MODES) * len(with_body))), seed)
    for index, case in enumerate(cases):
        if index % _AS_GENERATED_EVERY:
            _reach_the_engines(case, model)
    return cases


def _boundaries(schema: BaseSchema, operation: APIOperation) -> list[Case]:
    config = schema.config.generation_for(operation=operation)
    cases = schema.iter_coverage_cases(operation, generation_modes=_MODES, generation_config=config)
    return list(itertools.islice(cases, _MOST_BOUNDARIES))


def _shares(groups: Sequence[Sequence[Case]], number: int) -> Iterator[Case]:
    """`number` of all cases: small groups whole, of the others evenly spaced parts of equal size."""
    left = number
    for position, group in enumerate(sorted(groups, key=len)):
        share = min(len(group), left // (len(groups) - position))
        yield from (group[index * len(group) // share] for index in range(share))
        left -= share


def _fuzzed(operation: APIOperation, mode: GenerationMode, number: int, seed: int) -> list[Case]:
    cases: list[Case] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max(number, 1),
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(mode))
    def collect(case: Case) -> None:
        cases.append(case)

    collect()
    return cases


def _reach_the_engines(case: Case, model: str) -> None:
    """Replace what no request may have, since the values of other fields would never be looked at."""
    if not isinstance(case.body, dict):
        return
    body = {
        name: value for name, value in case.body.items() if name not in _EMPTY_IS_WRONG or value not in ("", [], None)
    }
    if "model" in body:
        body["model"] = model
    for name, value in _NEEDED.get(case.path, {}).items():
        if not body.get(name):
            body[name] = value
    case.body = body
