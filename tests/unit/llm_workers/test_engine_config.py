"""The arguments of an engine, where a default of vLLM's would give wrong tokens."""

from __future__ import annotations

from typing import Any

from configs import TriptychConfig
from llm_workers.engine_config import engine_args


def _connector_settings(**settings: Any) -> dict[str, Any]:
    config = TriptychConfig.model_validate({"model": "a/b", "device": "cpu", "prefill": {}, "decode": {}, **settings})
    transfer = engine_args(config, "prefill", None).kv_transfer_config
    assert transfer is not None
    extra: dict[str, Any] = transfer.kv_connector_extra_config
    return extra


def test_a_kv_cache_is_held_for_as_long_as_its_request_may_live() -> None:
    """NIXL's own 30 s end while a decode stage starts again; the cache is then pulled with other prompts' values."""
    assert _connector_settings(limits={"deadline_s": 240.5})["kv_lease_duration"] == 251


def test_a_lease_in_the_settings_stays() -> None:
    kv_transfer = {"connector": "NixlConnector", "extra_config": {"kv_lease_duration": 77, "backends": ["UCX"]}}
    assert _connector_settings(kv_transfer=kv_transfer) == {"kv_lease_duration": 77, "backends": ["UCX"]}


def test_other_connectors_are_told_only_what_the_settings_say() -> None:
    assert _connector_settings(kv_transfer={"connector": "MooncakeConnector"}) == {}
