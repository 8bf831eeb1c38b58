"""What the random checkpoints of the Qwen-VL families share."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from random_checkpoints.common import (
    CHAT_TOKENS,
    chat_template,
    draw_weights,
    save_byte_tokenizer,
    text_config,
    write_generation_config,
    write_json,
)

IMAGE_MEAN = [0.48145466, 0.4578275, 0.40821073]
IMAGE_STD = [0.26862954, 0.26130258, 0.27577711]
_VISION_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
_CHAT_TEMPLATE = chat_template(
    {
        ("image", "image_url"): "<|vision_start|><|image_pad|><|vision_end|>",
        ("video", "video_url"): "<|vision_start|><|video_pad|><|vision_end|>",
    }
)


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
    names_min_max: bool,
) -> None:
    """One of the Qwen-VL families, with at most 256 tokens per image.

    Args:
        names_min_max: the published files name the bounds min_pixels and max_pixels, instead of a size.
    """
    ids = save_byte_tokenizer(out_dir, [*CHAT_TOKENS, *_VISION_TOKENS], _CHAT_TEMPLATE)
    config = config_class(
        text_config=text_config(ids, rope_theta=1e6, rope_scaling=rope, **more_text),
        vision_config={"depth": 4, "num_heads": 4, "patch_size": patch_size, "in_channels": 3, **vision},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = model_class(config)
    draw_weights(model, seed)
    model.save_pretrained(out_dir)
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
    if names_min_max:
        del processor["size"]
        processor |= {"min_pixels": bounds["shortest_edge"], "max_pixels": bounds["longest_edge"]}
    write_json(out_dir / "preprocessor_config.json", processor | image)
    write_json(out_dir / "video_preprocessor_config.json", processor | video)
