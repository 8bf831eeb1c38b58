"""Makes the requests of a scenario: words and pictures of a seed, so that every run of a scenario asks the same."""

from __future__ import annotations

import base64
import random
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
_BLOCK = 8


@dataclass(frozen=True)
class Question:
    """One request to be sent."""

    messages: list[dict[str, Any]]
    num_images: int
    output_tokens: int


def make_questions(scenario: Scenario) -> list[Question]:
    """All requests of a scenario, in their order."""
    chance = random.Random(f"{scenario.name}/{scenario.seed}")
    pool = [chance.getrandbits(64) for _ in range(scenario.repeated_pool)]
    questions = []
    for _ in range(scenario.num_requests):
        num_images = scenario.images if scenario.images and chance.random() < scenario.with_images else 0
        seeds = [
            chance.choice(pool) if chance.random() < scenario.repeated else chance.getrandbits(64)
            for _ in range(num_images)
        ]
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": picture_url(seed, scenario.image_side)}} for seed in seeds
        ]
        parts.append({"type": "text", "text": " ".join(chance.choices(_WORDS, k=scenario.prompt_tokens))})
        questions.append(Question([{"role": "user", "content": parts}], num_images, scenario.output_tokens))
    return questions


def picture_url(seed: int, side: int) -> str:
    """A data: URL of a PNG file (RFC 2083) of coloured blocks, `side` pixels square, different for every seed."""
    chance = random.Random(seed)
    num_blocks = -(-side // _BLOCK)
    rows = []
    for _ in range(num_blocks):
        colours = chance.randbytes(3 * num_blocks)
        row = b"".join(colours[3 * block : 3 * block + 3] * _BLOCK for block in range(num_blocks))[: 3 * side]
        rows += [b"\0" + row] * _BLOCK
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(b"".join(rows[:side]), 6)
    png = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
