"""What the random checkpoints of all families share: a byte tokenizer, drawn weights, small JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

GAIN = 2.0
MAX_POSITIONS = 16384
VOCABULARY_SIZE = 288
CHAT_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def chat_template(parts: Mapping[tuple[str, ...], str]) -> str:
    """A ChatML template that writes `parts[types]` for a content part of one of these types."""
    branches = "".join(
        f"{{% {'elif' if index else 'if'} part['type'] in {types!r} %}}{text}"
        for index, (types, text) in enumerate(parts.items())
    )
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        f"{branches}{{% elif 'text' in part %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def save_byte_tokenizer(
    out_dir: Path, special_tokens: list[str], template: str, named: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Save a tokenizer of the 256 byte symbols plus `special_tokens`; return the ids of the special ones.

    `named` gives some of them a name, under which a processor looks them up.
    """
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
        extra_special_tokens=dict(named or {}),
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(out_dir)
    return {token: backend.token_to_id(token) for token in special_tokens}


def draw_tensor(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A matrix of standard deviation GAIN / sqrt(fan_in)."""
    return torch.randn(shape, generator=generator) * (GAIN / shape[1:].numel() ** 0.5)


def draw_weights(model: PreTrainedModel, seed: int) -> None:
    """Redraw every matrix of `model`, and give it the type that checkpoints are published in."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:  # One matrix for each expert, together in one tensor.
                parameter.copy_(torch.stack([draw_tensor(expert.shape, generator) for expert in parameter]))
            elif parameter.dim() >= 2:
                parameter.copy_(draw_tensor(parameter.shape, generator))
    model.to(torch.bfloat16)


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


def write_whisper_preprocessor(out_dir: Path, processor_class: str) -> None:
    """Whisper's log-mel features of sounds at 16 kHz in clips of 30 s."""
    write_json(
        out_dir / "preprocessor_config.json",
        {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": processor_class,
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
