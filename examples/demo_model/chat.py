"""The demo model's prompt format and its tokenizer, built from the sentences of the question generator."""

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from examples.demo_model.pairs import question_without_picture, questions_about_pair, sample_pair
from examples.demo_model.questions import questions_about
from examples.demo_model.scene import sample_scene

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (PAD, START, END, VISION_START, VISION_END, "<|vision_pad|>", IMAGE_PAD, VIDEO_PAD)
VOCAB_SIZE = 640
SYSTEM_TEXT = "You are a helpful assistant."
USER_HEAD = f"{START}user\n"
TURN_END = f"{END}\n"
ASSISTANT_HEAD = f"{START}assistant\n"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] in ('video', 'video_url') %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train byte-level BPE on generated text; any other text still tokenizes, digits always one by one."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_corpus(num_scenes=3000), trainer)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token=END, pad_token=PAD, additional_special_tokens=list(SPECIAL_TOKENS)
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return the id of one known token."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int), token
    return found


def _corpus(num_scenes: int) -> Iterator[str]:
    rng = random.Random("tokenizer")
    yield from (SYSTEM_TEXT, "system\n", "user\n", "assistant\n", "\n") * 50
    for _ in range(num_scenes):
        groups = [
            questions_about(sample_scene(rng), rng),
            questions_about_pair(*sample_pair(rng, (None, None)), rng),
            {"no_picture": [question_without_picture(rng)]},
        ]
        for group in groups:
            for questions in group.values():
                for question in questions:
                    yield question.text
                    yield question.answer
