"""A random InternVL checkpoint in OpenGVLab's own layout, as of InternVL2, 2.5 and 3.5, with a Qwen2 language model.

Its configuration class comes with the checkpoint, as the published ones do; vLLM needs `--trust-remote-code` for it.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import InternVLForConditionalGeneration

from random_checkpoints import internvl
from random_checkpoints.common import (
    chat_template,
    draw_weights,
    save_byte_tokenizer,
    text_config,
    write_generation_config,
    write_json,
)

_CHAT_TEMPLATE = chat_template({("image", "image_url"): "<image>\n"})
_CONFIGURATION = '''"""Configuration of the checkpoint beside this file."""

from transformers import AutoConfig, PretrainedConfig


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"
    has_no_defaults_at_init = True

    def __init__(self, vision_config=None, llm_config=None, **fields):
        super().__init__(**fields)
        self.vision_config = PretrainedConfig(**(vision_config or {}))
        llm = dict(llm_config or {})
        self.text_config = AutoConfig.for_model(llm.pop("model_type", "qwen2"), **llm)
'''
_TOWER = "vision_model.encoder.layers."
_RENAMED = (
    (r"model\.language_model\.", "language_model.model."),
    (r"model\.vision_tower\.embeddings\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"model\.vision_tower\.embeddings\.position_embeddings", "vision_model.embeddings.position_embedding"),
    (r"model\.vision_tower\.embeddings\.patch_embeddings\.projection", "vision_model.embeddings.patch_embedding"),
    (r"model\.vision_tower\.encoder\.layer\.(\d+)\.lambda_(\d)", _TOWER + r"\1.ls\2"),
    (r"model\.vision_tower\.encoder\.layer\.(\d+)\.attention\.projection_layer", _TOWER + r"\1.attn.proj"),
    (r"model\.vision_tower\.encoder\.layer\.(\d+)\.layernorm_before", _TOWER + r"\1.norm1"),
    (r"model\.vision_tower\.encoder\.layer\.(\d+)\.layernorm_after", _TOWER + r"\1.norm2"),
    (r"model\.vision_tower\.encoder\.layer\.(\d+)\.mlp", _TOWER + r"\1.mlp"),
    (r"model\.multi_modal_projector\.layer_norm", "mlp1.0"),
    (r"model\.multi_modal_projector\.linear_1", "mlp1.1"),
    (r"model\.multi_modal_projector\.linear_2", "mlp1.3"),
)
_QUERY = re.compile(r"model\.vision_tower\.encoder\.layer\.(\d+)\.attention\.q_proj\.(weight|bias)")
_KEY_OR_VALUE = re.compile(r".*\.vision_tower\..*\.attention\.[kv]_proj\..*")


def write(out_dir: Path, seed: int) -> None:
    """Write it: the sizes are those of the -hf checkpoint."""
    special_tokens = [token for token in internvl.SPECIAL_TOKENS if token != "<video>"]
    ids = save_byte_tokenizer(out_dir, special_tokens, _CHAT_TEMPLATE)
    hf_config = internvl.hf_config(ids)
    llm = text_config(ids, model_type="qwen2", rope_theta=1e6)
    hf_config.text_config = type(hf_config)(text_config=llm).text_config
    model = InternVLForConditionalGeneration(hf_config)
    draw_weights(model, seed)
    save_file(to_opengvlab(model.state_dict()), out_dir / "model.safetensors", metadata={"format": "pt"})
    write_generation_config(out_dir, ids)
    write_json(out_dir / "config.json", _config(llm))
    (out_dir / "configuration_internvl_chat.py").write_text(_CONFIGURATION)


def to_opengvlab(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The -hf tensors under OpenGVLab's names, with q, k and v of the tower in one matrix."""
    renamed = {}
    for name, tensor in tensors.items():
        if name == "lm_head.weight" or _KEY_OR_VALUE.fullmatch(name):
            continue
        if query := _QUERY.fullmatch(name):
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            renamed[f"{_TOWER}{query[1]}.attn.qkv.{query[2]}"] = torch.cat(parts)
            continue
        for pattern, new in _RENAMED:
            name = re.sub(f"^{pattern}", new, name)
        renamed[name] = tensor.contiguous()
    return renamed


def _config(llm: dict[str, object]) -> dict[str, object]:
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "model_type": "internvl_chat",
        "vision_config": {
            "model_type": "intern_vit_6b",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_channels": 3,
            "image_size": internvl.TILE_SIZE,
            "patch_size": internvl.PATCH_SIZE,
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
            "initializer_factor": 0.1,
            "use_flash_attn": False,
        },
        "llm_config": {"architectures": ["Qwen2ForCausalLM"], **llm},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": internvl.TILE_SIZE,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": internvl.MAX_TILES,
        "use_thumbnail": True,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
