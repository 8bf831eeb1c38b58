"""The forty prompts of the exactness test: every way that a user may write a chat request with pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.e2e.media import Picture, draw

Message = dict[str, Any]

_SIZES = [
    (28, 28), (56, 56), (57, 91), (112, 112), (113, 200), (224, 224), (225, 223), (300, 28), (28, 300), (448, 448),
    (449, 337), (640, 480), (641, 127), (800, 600), (1000, 40), (1023, 767), (1300, 900), (1299, 899),
]  # fmt: skip
_KINDS = ["png", "jpeg", "webp", "rgba", "palette", "gray", "rotated"]
_TEXTS = ["What is this?", "Describe the picture, please.", "?", "Compare.\nThen count to three.", "Ünïcödé 例 🙂"]


@dataclass(frozen=True)
class Question:
    """One prompt: its parts in order (text or picture), and how to send it."""

    number: int
    parts: tuple[str | Picture, ...]
    by_url: bool
    stream: bool

    def messages(self, url_of: Callable[[Picture], str]) -> list[Message]:
        """The chat messages; `url_of` gives a picture its http URL."""
        content: list[Message] = []
        for part in self.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                url = url_of(part) if self.by_url else part.data_url
                content.append({"type": "image_url", "image_url": {"url": url}})
        messages: list[Message] = [{"role": "user", "content": content}]
        if self.number % 5 == 0:
            messages.insert(0, {"role": "system", "content": "Answer briefly."})
        if self.number % 7 == 0:
            messages += [{"role": "assistant", "content": "I see."}, {"role": "user", "content": "Go on."}]
        return messages


def questions() -> list[Question]:
    """Forty prompts of none to four pictures; numbers of pictures, sizes, kinds and orders all vary."""
    found = []
    picture_number = 0
    for number in range(40):
        pictures = []
        for _ in range(number % 5):
            width, height = _SIZES[picture_number % len(_SIZES)]
            kind = _KINDS[picture_number % len(_KINDS)]
            pictures.append(draw(picture_number, width, height, kind))
            picture_number += 1
        if number % 11 == 9 and len(pictures) > 1:
            pictures[-1] = pictures[0]  # the same picture twice in one prompt
        text = _TEXTS[number % len(_TEXTS)]
        parts: list[str | Picture] = [*pictures, text]
        if number % 3 == 1:
            parts = [text, *pictures]
        elif number % 3 == 2 and len(pictures) > 1:
            parts = [pictures[0], text, *pictures[1:], "And now?"]
        found.append(Question(number, tuple(parts), by_url=number % 4 == 3, stream=number % 2 == 1))
    return found
