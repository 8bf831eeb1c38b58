"""Ask a checkpoint directly, with Hugging Face's own classes and greedy decoding.

Usage: python -m examples.demo_model.offline CHECKPOINT_DIR [--dtype bfloat16] [--count 1000] [--json FILE]
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import AutoProcessor, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from examples.demo_model.generator import EVAL_SEEDS, example
from examples.demo_model.report import score

MAX_NEW_TOKENS = 48


class Checkpoint:
    """A loaded checkpoint that answers one prompt at a time."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self._processor = AutoProcessor.from_pretrained(path)  # type: ignore[no-untyped-call]
        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=dtype)
        self._model.train(False)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The checkpoint's own tokenizer."""
        found: PreTrainedTokenizerFast = self._processor.tokenizer
        return found

    def ask(self, images: list[Image.Image], question: str) -> str:
        """Return the answer to ``question`` about ``images``, which stand before it in the prompt."""
        parts = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        prompt = self._processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        inputs = self._processor(text=[prompt], images=images or None, return_tensors="pt")
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)  # type: ignore[misc]
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        return str(self._processor.decode(answer, skip_special_tokens=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--first", type=int, default=EVAL_SEEDS.start)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = Checkpoint(options.checkpoint, {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype])
    examples = [example(seed) for seed in range(options.first, options.first + options.count)]
    answers = [checkpoint.ask(made.images(), made.question.text) for made in tqdm(examples, mininterval=5)]
    report = score(examples, answers)
    print(report.table())
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")


if __name__ == "__main__":
    main()
