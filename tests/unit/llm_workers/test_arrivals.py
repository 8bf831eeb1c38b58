"""A listener hears of each request that vLLM's input thread prepares, once, as long as it wants to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vllm.v1.engine.core import EngineCore

from llm_workers import arrivals


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineCore]:
    """An engine core that prepares requests by handing them back; vLLM's own method stands again afterwards."""
    monkeypatch.setattr(EngineCore, "preprocess_add_request", lambda _, request: (request, 0))
    arrivals.install()
    yield EngineCore.__new__(EngineCore)


def test_listeners_hear_of_requests(core: EngineCore) -> None:
    heard: list[str] = []

    def tell() -> None:
        heard.append("request")

    arrivals.listen(tell)
    assert core.preprocess_add_request("first") == ("first", 0)
    assert heard == ["request"]
    arrivals.install()  # vLLM loads its plug-ins more than once
    core.preprocess_add_request("second")
    assert heard == ["request"] * 2
    arrivals.forget(tell)
    core.preprocess_add_request("third")
    assert heard == ["request"] * 2
