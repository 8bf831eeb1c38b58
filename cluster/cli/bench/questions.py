"""Makes the requests of a scenario: words and media of a seed, so that every run of a scenario asks the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.cli.bench.media_files import Part, clip_part, picture_part, sound_part

if TYPE_CHECKING:
    from configs.scenarios import Scenario

_WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
)


@dataclass(frozen=True)
class Question:
    """One request to be sent. `num_media` counts its pictures, clips and sounds."""

    messages: list[dict[str, Any]]
    num_media: int
    output_tokens: int


def make_questions(scenario: Scenario) -> list[Question]:
    """All requests of a scenario, in their order."""
    chance = random.Random(f"{scenario.name}/{scenario.seed}")
    pool = [chance.getrandbits(64) for _ in range(scenario.repeated_pool)]
    makers = _makers(scenario)
    questions = []
    for _ in range(scenario.num_requests):
        media: list[Part] = []
        if makers and chance.random() < scenario.with_media:
            for make in makers:
                repeats = chance.random() < scenario.repeated
                media.append(make(chance.choice(pool) if repeats else chance.getrandbits(64)))
        text = {"type": "text", "text": " ".join(chance.choices(_WORDS, k=scenario.prompt_tokens))}
        parts = [text, *media] if scenario.question_first else [*media, text]
        questions.append(Question([{"role": "user", "content": parts}], len(media), scenario.output_tokens))
    return questions


def _makers(scenario: Scenario) -> list[Callable[[int], Part]]:
    """What makes each item of a request that has any, from a seed."""
    return [
        *[lambda seed: picture_part(seed, scenario.image_side)] * scenario.images,
        *[lambda seed: clip_part(seed, scenario.video_side, scenario.video_s)] * scenario.videos,
        *[lambda seed: sound_part(seed, scenario.audio_s)] * scenario.audios,
    ]
