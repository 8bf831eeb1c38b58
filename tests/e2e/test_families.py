"""Every family's tokens through Triptych's stages over HTTP are those of one whole vLLM engine of the same weights.

Two programs run side by side, each one family after another: `families/service_answers.py` and
`families/reference_answers.py`. Float32, greedy.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from make_random_checkpoint import FAMILIES, VLLM_FAMILIES, make_checkpoint

from tests.e2e.conftest import PictureHost
from tests.e2e.families.asks import FamilyAsks, asks_of

pytestmark = pytest.mark.timeout(900)
_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 800
ALL_FAMILIES = sorted(FAMILIES | VLLM_FAMILIES)


@pytest.fixture(scope="module")
def asks(tmp_path_factory: pytest.TempPathFactory, picture_host: PictureHost) -> dict[str, FamilyAsks]:
    folder = tmp_path_factory.mktemp("families")
    found = {}
    for family in ALL_FAMILIES:
        make_checkpoint(folder / family, family=family, seed=7)
        found[family] = asks_of(family, folder / family, picture_host.url_of)
    return found


@pytest.fixture(scope="module")
def answers(asks: dict[str, FamilyAsks], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By program, then by family."""
    folder = tmp_path_factory.mktemp("answers")
    file = folder / "asks.json"
    file.write_text(json.dumps({family: entry.for_programs() for family, entry in asks.items()}))
    running = {}
    for program in ("service", "reference"):
        command = [sys.executable, "-m", f"tests.e2e.families.{program}_answers", str(file), str(folder / program)]
        log = (folder / f"{program}.log").open("wb")
        running[program] = subprocess.Popen(command, cwd=_ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        for program, process in running.items():
            status = process.wait(_TIMEOUT_S)
            assert status == 0, (folder / f"{program}.log").read_text(errors="replace")[-6000:]
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return {program: json.loads((folder / program).read_text()) for program in running}


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_same_tokens_as_one_engine(
    family: str, asks: dict[str, FamilyAsks], answers: dict[str, dict[str, Any]]
) -> None:
    ours, theirs = answers["service"][family], answers["reference"][family]
    distinct = set()
    for index, ask in enumerate(asks[family].asks):
        got = ours["answers"][index]
        if ask.refused is not None:
            assert 400 <= got["status"] < 500 and re.search(ask.refused, got["message"]), (index, got)
            continue
        assert "status" not in got, (index, got)
        assert got["prompt"] == theirs[index]["prompt"], index
        assert len(got["answer"]) == ask.max_tokens
        assert got["answer"] == theirs[index]["answer"], index
        distinct.add(tuple(got["answer"]))
    # A model that ignored its media would pass.
    assert len(distinct) >= sum(ask.refused is None for ask in asks[family].asks) - 1
    assert ours["num_leases"] == 0
