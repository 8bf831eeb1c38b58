"""The arguments of an engine, where a default of vLLM's would give wrong tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from random_checkpoints.common import CHAT_TOKENS, save_byte_tokenizer, text_config, write_json
from vllm.engine.arg_utils import AsyncEngineArgs

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


def test_engines_know_where_reasoning_ends(tmp_path: Path) -> None:
    """Else a grammar holds from the first token on, and a thinking budget that the ingress let through is refused."""
    ids = save_byte_tokenizer(tmp_path, [*CHAT_TOKENS, "<think>", "</think>"], "{{ messages }}")
    settings = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16"}
    write_json(tmp_path / "config.json", text_config(ids, **settings))
    config = TriptychConfig.model_validate(
        {
            "model": str(tmp_path),
            "device": "cpu",
            "decode": {"engine_args": {"enforce_eager": True}},
            "ingress": {"reasoning_parser": "deepseek_r1"},
        }
    )
    vllm_config = engine_args(config, "decode", None).create_engine_config()
    assert vllm_config.structured_outputs_config.reasoning_parser == "deepseek_r1"
    assert vllm_config.reasoning_config is not None
    assert vllm_config.reasoning_config.enabled
    assert vllm_config.reasoning_config.reasoning_end_token_ids == [ids["</think>"]]


def test_the_engine_arguments_of_a_stage_come_last() -> None:
    own = {"engine_args": {"reasoning_parser": "qwen3"}}
    config = TriptychConfig.model_validate(
        {"model": "a/b", "prefill": {}, "decode": own, "ingress": {"reasoning_parser": "deepseek_r1"}}
    )
    assert engine_args(config, "prefill", None).reasoning_parser == "deepseek_r1"
    assert engine_args(config, "decode", None).reasoning_parser == "qwen3"


def test_without_a_parser_there_is_no_reasoning() -> None:
    config = TriptychConfig.model_validate({"model": "a/b", "decode": {}})
    assert engine_args(config, "decode", None).reasoning_parser == AsyncEngineArgs().reasoning_parser
