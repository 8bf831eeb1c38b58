"""The front judges requests as the engines do: by the same model, whatever their arguments make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from make_random_checkpoint import make_checkpoint
from vllm.config import VllmConfig

from cluster.ingress.app import front_config
from configs import TriptychConfig, parse_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "model"
    make_checkpoint(folder)
    return folder


def _front(checkpoint: Path, decode: dict[str, Any], prefill: dict[str, Any] | None = None) -> VllmConfig:
    settings: dict[str, Any] = {"model": str(checkpoint), "dtype": "float32", "decode": {"engine_args": decode}}
    if prefill is not None:
        settings["prefill"] = {"engine_args": prefill}
    return front_config(parse_config(settings))[1]


def test_a_length_that_the_model_has_only_by_an_override(checkpoint: Path) -> None:
    longer = {"text_config": {"max_position_embeddings": 100_000}}
    front = _front(checkpoint, {"max_model_len": 100_000, "hf_overrides": longer})
    assert front.model_config.max_model_len == 100_000


def test_how_answers_are_sampled_and_how_many_logprobs_they_may_have(checkpoint: Path) -> None:
    front = _front(checkpoint, {"max_logprobs": 50, "override_generation_config": {"temperature": 0.25}})
    assert front.model_config.max_logprobs == 50
    assert front.model_config.get_diff_sampling_param()["temperature"] == 0.25


def test_the_tokens_of_one_item_are_bounded_where_prompts_are_computed(checkpoint: Path) -> None:
    front = _front(checkpoint, {"max_num_batched_tokens": 512}, {"max_num_batched_tokens": 4096})
    assert front.scheduler_config.max_num_batched_tokens == 4096


def test_stages_of_different_models_are_refused(checkpoint: Path) -> None:
    settings: dict[str, Any] = {"model": str(checkpoint), "decode": {"engine_args": {"tokenizer": "other"}}}
    with pytest.raises(ValueError, match=r"different engine_args\.tokenizer"):
        TriptychConfig.model_validate({**settings, "prefill": {}})
    with pytest.raises(ValueError, match=r"engine_args\.revision is decided by Triptych"):
        TriptychConfig.model_validate({**settings, "decode": {"engine_args": {"revision": "main"}}})
