"""Pack prompts into rows: one picture prefix, and behind it many questions that cannot see one another.

A question in such a row has the same tokens, positions and visible context as alone in its own prompt, so the
prefix is computed once for all of them and nothing else changes.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from examples.demo_model import chat
from examples.demo_model.layout import Grid
from examples.demo_model.questions import Question

SHARED = 0
PADDING = -1


@dataclass(slots=True)
class Row:
    """Tokens with their M-RoPE positions, the branch each belongs to (0 is shared), and the answers to predict.

    ``targets`` holds (place, token, answer index): the token that the one at ``place`` must be followed by.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    targets: list[tuple[int, int, int]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    next_position: int = 0

    def add_text(self, ids: list[int], branch: int) -> None:
        self.ids += ids
        self.positions += [(p, p, p) for p in range(self.next_position, self.next_position + len(ids))]
        self.branches += [branch] * len(ids)
        self.next_position += len(ids)

    def add_picture(self, grid: Grid, image_pad: int) -> None:
        start = self.next_position
        self.ids += [image_pad] * grid.num_tokens
        self.positions += [(start, start + i, start + j) for i in range(grid.rows) for j in range(grid.columns)]
        self.branches += [SHARED] * grid.num_tokens
        self.next_position += max(grid.rows, grid.columns)


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows padded to one length. ``ids`` (B, T), ``positions`` (3, B, T), ``branches`` (B, T), targets flat."""

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    branches: npt.NDArray[np.int64]
    target_rows: npt.NDArray[np.int64]
    target_places: npt.NDArray[np.int64]
    target_ids: npt.NDArray[np.int64]
    target_answers: npt.NDArray[np.int64]
    kinds: tuple[str, ...]


class RowBuilder:
    """Builds rows with one tokenizer, remembering the ids of sentences it has seen."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._seen: dict[str, list[int]] = {}
        self.image_pad: int = self._encode(chat.IMAGE_PAD)[0]

    def branched(self, grids: list[Grid], questions: list[list[Question]], system: bool) -> Row:
        """Pictures first, then independent branches; a branch of several questions is a conversation."""
        row = Row()
        head = f"{chat.START}system\n{chat.SYSTEM_TEXT}{chat.TURN_END}" if system else ""
        if grids:
            row.add_text(self._encode(head + chat.USER_HEAD), SHARED)
            self._add_pictures(row, grids)
        shared_end = row.next_position
        for branch, turns in enumerate(questions, start=1):
            row.next_position = shared_end
            for turn, question in enumerate(turns):
                lead = "" if grids else head + chat.USER_HEAD
                text = f"\n{chat.USER_HEAD}{question.text}" if turn else lead + question.text
                row.add_text(self._encode(f"{text}{chat.TURN_END}{chat.ASSISTANT_HEAD}"), branch)
                self._add_answer(row, question, branch)
        return row

    def text_first(self, grids: list[Grid], question: Question) -> Row:
        """One question written before its pictures."""
        row = Row()
        row.add_text(self._encode(chat.USER_HEAD + question.text), SHARED)
        self._add_pictures(row, grids)
        row.add_text(self._encode(f"{chat.TURN_END}{chat.ASSISTANT_HEAD}"), SHARED)
        self._add_answer(row, question, SHARED)
        return row

    def _add_pictures(self, row: Row, grids: list[Grid]) -> None:
        for grid in grids:
            row.add_text(self._encode(chat.VISION_START), SHARED)
            row.add_picture(grid, self.image_pad)
            row.add_text(self._encode(chat.VISION_END), SHARED)

    def _add_answer(self, row: Row, question: Question, branch: int) -> None:
        ids = self._encode(question.answer + chat.END)
        first = len(row.ids) - 1
        row.targets += [(first + i, token, len(row.kinds)) for i, token in enumerate(ids)]
        row.kinds.append(question.kind)
        row.add_text(ids, branch)

    def _encode(self, text: str) -> list[int]:
        if text not in self._seen:
            self._seen[text] = list(self._tokenizer.encode(text, add_special_tokens=False))
        return self._seen[text]


def pack(rows: list[Row]) -> PackedRows:
    """Pad ``rows`` on the right to the longest of them."""
    length = max(len(row.ids) for row in rows)
    ids = np.zeros((len(rows), length), np.int64)
    positions = np.zeros((3, len(rows), length), np.int64)
    branches = np.full((len(rows), length), PADDING, np.int64)
    targets: list[tuple[int, int, int, int]] = []
    kinds: list[str] = []
    for index, row in enumerate(rows):
        used = len(row.ids)
        ids[index, :used] = row.ids
        positions[:, index, :used] = np.array(row.positions).T
        branches[index, :used] = row.branches
        targets += [(index, place, token, len(kinds) + answer) for place, token, answer in row.targets]
        kinds += row.kinds
    columns = np.array(targets, np.int64).T
    return PackedRows(ids, positions, branches, columns[0], columns[1], columns[2], columns[3], tuple(kinds))
