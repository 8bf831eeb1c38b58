"""Write a small random multimodal checkpoint in its published layout, for tests, examples and demonstrations.

Weights are drawn with gain 2: greedy output then depends on every pixel. With the usual 0.02 initialisation a model
repeats one token whatever it is shown, and comparing two systems' outputs proves nothing.

Usage: python tools/make_random_checkpoint.py OUT_DIR [--family qwen2_5_vl] [--seed 1]
With one short function per family the file is longer than most.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

logger = logging.getLogger("make_random_checkpoint")

GAIN = 2.0
MAX_POSITIONS = 16384
VOCABULARY_SIZE = 288
IMAGE_MEAN = [0.48145466, 0.4578275, 0.40821073]
IMAGE_STD = [0.26862954, 0.26130258, 0.27577711]
QWEN_SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] in ('video', 'video_url') %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_byte_tokenizer(out_dir: Path, special_tokens: list[str], chat_template: str) -> dict[str, int]:
    """Save a tokenizer of the 256 byte symbols plus `special_tokens`; return the ids of the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special_tokens)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special_tokens,
        model_max_length=MAX_POSITIONS,
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(out_dir)
    return {token: backend.token_to_id(token) for token in special_tokens}


def save_random_weights(model: PreTrainedModel, out_dir: Path, seed: int) -> None:
    """Redraw every matrix of `model` with standard deviation GAIN / sqrt(fan_in), and save it in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * (GAIN / parameter[0].numel() ** 0.5))
    model.to(torch.bfloat16).save_pretrained(out_dir)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_generation_config(out_dir: Path, ids: Mapping[str, int]) -> None:
    write_json(
        out_dir / "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
            "do_sample": False,
        },
    )


def text_config(ids: Mapping[str, int], **more: object) -> dict[str, object]:
    """A language model of two layers and 128 columns."""
    return {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY_SIZE,
        "max_position_embeddings": MAX_POSITIONS,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "tie_word_embeddings": True,
        **more,
    }


def write_qwen_vl(
    out_dir: Path,
    seed: int,
    *,
    config_class: type[PreTrainedConfig],
    model_class: type[PreTrainedModel],
    vision: dict[str, object],
    rope: dict[str, object],
    more_text: dict[str, object],
    patch_size: int,
    processor_class: str,
    video_processor: str,
) -> None:
    """One of the Qwen-VL families, with at most 256 tokens per image."""
    ids = save_byte_tokenizer(out_dir, QWEN_SPECIAL_TOKENS, QWEN_CHAT_TEMPLATE)
    config = config_class(
        text_config=text_config(ids, rope_theta=1e6, rope_scaling=rope, **more_text),
        vision_config={"depth": 4, "num_heads": 4, "patch_size": patch_size, "in_channels": 3, **vision},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    save_random_weights(model_class(config), out_dir, seed)
    write_generation_config(out_dir, ids)
    side = 2 * patch_size
    bounds = {"shortest_edge": 4 * side * side, "longest_edge": 256 * side * side}
    processor: dict[str, object] = {
        "processor_class": processor_class,
        "size": bounds,
        "patch_size": patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
    }
    image, video = {"image_processor_type": "Qwen2VLImageProcessor"}, {"video_processor_type": video_processor}
    if config_class is not Qwen3VLConfig and config_class is not Qwen3VLMoeConfig:
        del processor["size"]  # these families' published files name the bounds so
        processor |= {"min_pixels": bounds["shortest_edge"], "max_pixels": bounds["longest_edge"]}
    write_json(out_dir / "preprocessor_config.json", processor | image)
    write_json(out_dir / "video_preprocessor_config.json", processor | video)


def write_qwen2_vl(out_dir: Path, seed: int) -> None:
    """Qwen2-VL: 4 tower layers, each attending to a whole frame."""
    write_qwen_vl(
        out_dir,
        seed,
        config_class=Qwen2VLConfig,
        model_class=Qwen2VLForConditionalGeneration,
        vision={"embed_dim": 128, "hidden_size": 128, "mlp_ratio": 2, "hidden_act": "quick_gelu"},
        rope={"type": "mrope", "mrope_section": [8, 12, 12]},
        more_text={},
        patch_size=14,
        processor_class="Qwen2VLProcessor",
        video_processor="Qwen2VLVideoProcessor",
    )


def write_qwen2_5_vl(out_dir: Path, seed: int) -> None:
    """Qwen2.5-VL: 4 tower layers, two of them windowed."""
    write_qwen_vl(
        out_dir,
        seed,
        config_class=Qwen2_5_VLConfig,
        model_class=Qwen2_5_VLForConditionalGeneration,
        vision={
            "hidden_size": 128,
            "intermediate_size": 256,
            "out_hidden_size": 128,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "hidden_act": "silu",
            "tokens_per_second": 2,
        },
        rope={"type": "mrope", "mrope_section": [8, 12, 12]},
        more_text={},
        patch_size=14,
        processor_class="Qwen2_5_VLProcessor",
        video_processor="Qwen2VLVideoProcessor",
    )


QWEN3_VISION: dict[str, object] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "out_hidden_size": 128,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 2],
    "hidden_act": "gelu_pytorch_tanh",
}
QWEN3_ROPE: dict[str, object] = {"rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True}


def write_qwen3_vl(out_dir: Path, seed: int) -> None:
    """Qwen3-VL, dense: 4 tower layers, two of which give DeepStack levels."""
    write_qwen_vl(
        out_dir,
        seed,
        config_class=Qwen3VLConfig,
        model_class=Qwen3VLForConditionalGeneration,
        vision=QWEN3_VISION,
        rope=QWEN3_ROPE,
        more_text={"head_dim": 64},
        patch_size=16,
        processor_class="Qwen3VLProcessor",
        video_processor="Qwen3VLVideoProcessor",
    )


def write_qwen3_vl_moe(out_dir: Path, seed: int) -> None:
    """Qwen3-VL with a mixture of 4 experts, 2 of which each token uses."""
    write_qwen_vl(
        out_dir,
        seed,
        config_class=Qwen3VLMoeConfig,
        model_class=Qwen3VLMoeForConditionalGeneration,
        vision=QWEN3_VISION,
        rope=QWEN3_ROPE,
        more_text={"head_dim": 64, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
        patch_size=16,
        processor_class="Qwen3VLProcessor",
        video_processor="Qwen3VLVideoProcessor",
    )


AUDIO_SPECIAL_TOKENS = [*QWEN_SPECIAL_TOKENS[:3], "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
AUDIO_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('audio', 'audio_url', 'input_audio') %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_qwen2_audio(out_dir: Path, seed: int) -> None:
    """Qwen2-Audio: 2 tower layers over clips of up to 30 s."""
    ids = save_byte_tokenizer(out_dir, AUDIO_SPECIAL_TOKENS, AUDIO_CHAT_TEMPLATE)
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "d_model": 128,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 256,
            "encoder_layers": 2,
            "num_mel_bins": 128,
            "max_source_positions": 1500,
        },
        text_config=text_config(ids, model_type="qwen2"),
        audio_token_index=ids["<|AUDIO|>"],
    )
    save_random_weights(Qwen2AudioForConditionalGeneration(config), out_dir, seed)
    write_generation_config(out_dir, ids)
    write_json(
        out_dir / "preprocessor_config.json",
        {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "Qwen2AudioProcessor",
            "chunk_length": 30,
            "feature_size": 128,
            "hop_length": 160,
            "n_fft": 400,
            "n_samples": 480000,
            "nb_max_frames": 3000,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
            "sampling_rate": 16000,
        },
    )


FAMILIES: dict[str, Callable[[Path, int], None]] = {
    "qwen2_vl": write_qwen2_vl,
    "qwen2_5_vl": write_qwen2_5_vl,
    "qwen3_vl": write_qwen3_vl,
    "qwen3_vl_moe": write_qwen3_vl_moe,
    "qwen2_audio": write_qwen2_audio,
}


def make_checkpoint(out_dir: Path, *, family: str = "qwen2_5_vl", seed: int = 1) -> None:
    """Write the checkpoint; `out_dir` appears only when complete. Raises ValueError for a bad family or a used path."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(sorted(FAMILIES))}")
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ValueError(f"{out_dir} exists and is not empty")
    started = time.monotonic()
    logger.info("building a random %s checkpoint", family)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        FAMILIES[family](partial, seed)
        partial.chmod(0o755)
        for path in partial.iterdir():
            path.chmod(0o644)
        partial.rename(out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("wrote %s in %.1f s", out_dir, time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--family", default="qwen2_5_vl", choices=sorted(FAMILIES))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        make_checkpoint(arguments.out_dir, family=arguments.family, seed=arguments.seed)
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
