"""Write the trained network as a checkpoint in Qwen2.5-VL's published layout.

Usage, also while the training goes on: python -m examples.demo_model.export STATE_FILE CHECKPOINT_DIR
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from examples.demo_model import chat, layout
from examples.demo_model.network import Network


def config_of(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """Return the configuration of the demo model."""
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": layout.TEXT_WIDTH,
            "intermediate_size": layout.TEXT_MLP,
            "num_hidden_layers": layout.TEXT_DEPTH,
            "num_attention_heads": layout.TEXT_HEADS,
            "num_key_value_heads": layout.TEXT_KV_HEADS,
            "vocab_size": chat.VOCAB_SIZE,
            "max_position_embeddings": layout.MAX_POSITIONS,
            "rms_norm_eps": layout.NORM_EPS,
            "rope_theta": layout.TEXT_ROPE_BASE,
            "rope_scaling": {"type": "mrope", "mrope_section": list(layout.MROPE_SECTION)},
            "bos_token_id": chat.token_id(tokenizer, chat.PAD),
            "eos_token_id": chat.token_id(tokenizer, chat.END),
            "pad_token_id": chat.token_id(tokenizer, chat.PAD),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": layout.TOWER_DEPTH,
            "hidden_size": layout.TOWER_WIDTH,
            "num_heads": layout.TOWER_HEADS,
            "intermediate_size": layout.TOWER_MLP,
            "out_hidden_size": layout.TEXT_WIDTH,
            "patch_size": layout.PATCH,
            "spatial_merge_size": layout.MERGE,
            "temporal_patch_size": 2,
            "window_size": layout.WINDOW_CELLS * layout.CELL,
            "fullatt_block_indexes": list(layout.FULL_ATTENTION_BLOCKS),
            "in_channels": 3,
            "hidden_act": "silu",
            "tokens_per_second": 2,
        },
        image_token_id=chat.token_id(tokenizer, chat.IMAGE_PAD),
        video_token_id=chat.token_id(tokenizer, chat.VIDEO_PAD),
        vision_start_token_id=chat.token_id(tokenizer, chat.VISION_START),
        vision_end_token_id=chat.token_id(tokenizer, chat.VISION_END),
        tie_word_embeddings=True,
    )


def to_hugging_face(network: Network, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """Return the same network as Hugging Face's module, in float32."""
    model = Qwen2_5_VLForConditionalGeneration(config_of(tokenizer))
    weights = {f"model.{name}": weight for name, weight in network.state_dict().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert missing in ([], ["lm_head.weight"]), missing
    model.tie_weights()
    model.train(False)
    return model


def export(network: Network, tokenizer: PreTrainedTokenizerFast, out_dir: Path) -> None:
    """Write configuration, bfloat16 weights, tokenizer, chat template and preprocessing to ``out_dir``."""
    model = to_hugging_face(network, tokenizer)
    model.bfloat16()
    end, pad = chat.token_id(tokenizer, chat.END), chat.token_id(tokenizer, chat.PAD)
    # Servers take their default sampling from here and do not read do_sample: the likeliest token, always.
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=pad, eos_token_id=[end, pad], pad_token_id=pad, do_sample=True, top_k=1
    )
    model.save_pretrained(out_dir)
    tokenizer.model_max_length = layout.MAX_POSITIONS
    tokenizer.save_pretrained(out_dir)
    preprocessing = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": layout.MIN_PIXELS,
        "max_pixels": layout.MAX_PIXELS,
        "patch_size": layout.PATCH,
        "temporal_patch_size": 2,
        "merge_size": layout.MERGE,
        "image_mean": list(layout.IMAGE_MEAN),
        "image_std": list(layout.IMAGE_STD),
    }
    (out_dir / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state_file", type=Path)
    parser.add_argument("checkpoint", type=Path)
    options = parser.parse_args()
    network = Network(chat.VOCAB_SIZE)
    network.load_state_dict(torch.load(options.state_file, weights_only=True)["network"])
    export(network, chat.build_tokenizer(), options.checkpoint)


if __name__ == "__main__":
    main()
