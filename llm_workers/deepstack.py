"""Lets an engine without the encoder take Qwen3-VL's DeepStack levels, which come beside the main embedding.

vLLM 0.30 reserves room for them only where it holds the tower itself; without it, embeddings of the right width fail in
the merge with the text. The classes here reserve it in any case and are otherwise vLLM's own.
"""

from __future__ import annotations

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration


class TakesDeepstack:
    """Mixed into a Qwen3-VL model: the buffers that vLLM's merge writes to and its language model reads."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        hf_config = vllm_config.model_config.hf_config
        self.use_deepstack = True
        self.deepstack_num_level = len(hf_config.vision_config.deepstack_visual_indexes)
        self.multiscale_dim = hf_config.vision_config.out_hidden_size * self.deepstack_num_level
        max_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        width = hf_config.text_config.hidden_size
        self.deepstack_input_embeds = [torch.zeros(max_tokens, width) for _ in range(self.deepstack_num_level)]
        self.deepstack_input_embeds_num_tokens = 0


class Qwen3VL(TakesDeepstack, Qwen3VLForConditionalGeneration):  # type: ignore[misc]
    """Dense."""


class Qwen3VLMoe(TakesDeepstack, Qwen3VLMoeForConditionalGeneration):  # type: ignore[misc]
    """With a mixture of experts."""


def install() -> None:
    """Have this process load these classes for the architectures; before it loads a model."""
    ModelRegistry.register_model("Qwen3VLForConditionalGeneration", Qwen3VL)
    ModelRegistry.register_model("Qwen3VLMoeForConditionalGeneration", Qwen3VLMoe)
