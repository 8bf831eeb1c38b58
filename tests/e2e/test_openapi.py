"""Requests generated from the served OpenAPI document: none breaks the service, hangs, or leaves anything behind.

`--openapi-requests N` for another number of them, `--log-cli-level=INFO` for the figures.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from openai import OpenAI
from schemathesis import Case

from benchmarks.memory import memory_below
from tests.e2e.conftest import MODEL_NAME, OPENAPI_REQUESTS
from tests.e2e.leases import stage_status, wait_until_nothing_is_held
from tests.e2e.openapi_requests import generated_requests
from tests.e2e.servers import Server
from tests.e2e.test_exact import ask
from transfer.errors import ERROR_TYPES

logger = logging.getLogger(__name__)

_SEED = 5
_AT_ONCE = 8
# A request's own time is over before (`limits.deadline_s` of the service under test).
_HANGS_AFTER_S = 150
_MAX_GROWTH_MIB = 256
# What a service that nobody has harmed may answer: it is full for a moment, or the time of the request is over.
_ALLOWED_CODES = {"busy", "deadline_exceeded"}


@pytest.mark.timeout(1200)
def test_generated_requests_break_nothing(
    service: Server, client: OpenAI, reference: OpenAI, pytestconfig: pytest.Config
) -> None:
    number = int(pytestconfig.getoption("--openapi-requests", OPENAPI_REQUESTS))
    document = requests.get(f"{service.url}/openapi.json", timeout=30).json()
    cases = generated_requests(document, MODEL_NAME, number, _SEED)
    random.Random(_SEED).shuffle(cases)
    processes = _process_ids(service)
    # What the first requests of each kind load stays, and is no growth.
    statuses, faults = _send(service, cases[: number // 4])
    before = memory_below(service.process.pid)
    more_statuses, more_faults = _send(service, cases[number // 4 :])
    after = memory_below(service.process.pid)
    statuses += more_statuses
    grown = {name: (size - before[name]) >> 20 for name, size in after.items() if name in before}
    logger.info("answers by status: %s; memory grew by %d MiB", dict(sorted(statuses.items())), sum(grown.values()))

    assert faults + more_faults == []
    # The engines were reached, and not only the checks before them.
    assert statuses[200] > number // 10, statuses
    assert _process_ids(service) == processes
    wait_until_nothing_is_held(service)
    assert sum(grown.values()) < _MAX_GROWTH_MIB, {name: mib for name, mib in grown.items() if mib}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Still there?"}]
    assert ask(client, messages, stream=True) == ask(reference, messages, stream=False)


def _send(service: Server, cases: list[Case]) -> tuple[Counter[int], list[str]]:
    """How many answers had each status, and what was wrong with any of them."""
    statuses: Counter[int] = Counter()
    faults: list[str] = []

    def send(case: Case) -> tuple[Case, int, str]:
        answer = case.call(base_url=service.url, timeout=_HANGS_AFTER_S)
        return case, answer.status_code, answer.content.decode(errors="replace")

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for case, status, text in threads.map(send, cases):
            statuses[status] += 1
            faults += [f"{case.operation.label}: {fault}\n{case.body!r:.2000}" for fault in _faults(status, text)]
    return statuses, faults


def _faults(status: int, text: str) -> Iterator[str]:
    """An answer of 500 and above, or an error of that kind within a stream, that is not one of the allowed."""
    if status >= 500:
        yield from _faults_of_error(status, text)
    for line in text.splitlines() if status == 200 else ():
        event = line.removeprefix("data: ")
        if event != line and event.startswith("{") and "error" in (parsed := json.loads(event)):
            yield from _faults_of_error((parsed["error"] or {}).get("code"), event)


def _faults_of_error(status: Any, text: str) -> Iterator[str]:
    if not isinstance(status, int) or status < 500:
        return
    try:
        error = json.loads(text)["error"]
        code = error["message"].rpartition("[")[2].removesuffix("]")
        typed = error["code"] == status and error["message"].endswith("]") and code in ERROR_TYPES
    except (ValueError, KeyError, TypeError):
        yield f"{status} without an error object: {text[:500]}"
        return
    if not typed or code not in _ALLOWED_CODES:
        yield f"{status}: {error}"


def _process_ids(service: Server) -> dict[str, list[int]]:
    return {
        stage: sorted(replica["process_id"] for replica in stage_status(service, stage))
        for stage in ("encoder", "prefill", "decode")
    }
