"""Make training batch number i from its number alone, so that a resumed training goes on where it stopped."""

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from examples.demo_model import layout
from examples.demo_model.labels import labels_of
from examples.demo_model.layout import Grid
from examples.demo_model.painting import paint
from examples.demo_model.pairs import question_without_picture, questions_about_pair, sample_pair
from examples.demo_model.questions import Question, questions_about
from examples.demo_model.rows import PackedRows, Row, RowBuilder, pack
from examples.demo_model.scene import Scene, sample_scene, sample_size

_SEEDS_PER_BATCH = 1000
# How many questions of a kind are asked about a picture that allows them; a share below one is a probability.
_SHARES = {
    "colour": 1.0,
    "shape": 1.0,
    "count": 2.0,
    "left_right": 2.0,
    "above_below": 2.0,
    "number": 1.0,
    "describe": 0.6,
    "missing": 0.2,
    "same_shape": 2.0,
    "which_picture": 2.0,
}


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a batch is made of: single pictures (a share of them numbers), pairs, and prompts without a picture."""

    num_singles: int
    num_pairs: int
    num_text: int
    number_share: float


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of one grid. ``patches`` (B, N, 3, 14, 14) uint8; the other arrays are ``Labels`` stacked."""

    grid: Grid
    patches: npt.NDArray[np.uint8]
    names: npt.NDArray[np.int64]
    colours: npt.NDArray[np.int64]
    centres: npt.NDArray[np.int64]
    facts: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """``singles`` fill the first rows, the pairs of ``firsts`` and ``seconds`` the next, then rows without pictures."""

    singles: Pictures
    firsts: Pictures | None
    seconds: Pictures | None
    rows: PackedRows


class BatchMaker:
    """Makes batches from the seeds of ``split``."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, split: range) -> None:
        self._builder = RowBuilder(tokenizer)
        self._split = split

    def make(self, index: int, mixture: Mixture) -> Batch:
        """Return batch ``index``; raises ValueError past the end of the split."""
        first_seed = self._split.start + index * _SEEDS_PER_BATCH
        if first_seed + _SEEDS_PER_BATCH > self._split.stop:
            raise ValueError(f"batch {index} lies past the seeds {self._split}")
        rng = random.Random(first_seed)
        size = sample_size(rng)
        scenes = [sample_scene(rng, size, mixture.number_share) for _ in range(mixture.num_singles)]
        rows = [self._single_row(scene, rng) for scene in scenes]
        singles = pictures_of(scenes)
        firsts = seconds = None
        if mixture.num_pairs:
            sizes = (sample_size(rng), sample_size(rng))
            pairs = [sample_pair(rng, sizes) for _ in range(mixture.num_pairs)]
            firsts, seconds = pictures_of([a for a, _ in pairs]), pictures_of([b for _, b in pairs])
            rows += [self._pair_row(first, second, rng) for first, second in pairs]
        if mixture.num_text:
            asked = [[question_without_picture(rng)] for _ in range(mixture.num_text)]
            rows.append(self._builder.branched([], asked, system=rng.random() < 0.3))
        return Batch(singles, firsts, seconds, pack(rows))

    def _single_row(self, scene: Scene, rng: random.Random) -> Row:
        grid = layout.grid_of(scene.width, scene.height)
        chosen = _choose(questions_about(scene, rng), rng)
        if rng.random() < 0.06:
            return self._builder.text_first([grid], rng.choice(chosen))
        return self._builder.branched([grid], _branches(chosen, rng), system=rng.random() < 0.08)

    def _pair_row(self, first: Scene, second: Scene, rng: random.Random) -> Row:
        grids = [layout.grid_of(scene.width, scene.height) for scene in (first, second)]
        chosen = _choose(questions_about_pair(first, second, rng), rng)
        if chosen and rng.random() < 0.06:
            return self._builder.text_first(grids, rng.choice(chosen))
        return self._builder.branched(grids, _branches(chosen, rng), system=rng.random() < 0.08)


def pictures_of(scenes: list[Scene]) -> Pictures:
    """Paint scenes of one size and cut them to patches, with what each patch shows."""
    grid = layout.grid_of(scenes[0].width, scenes[0].height)
    painted = [paint(scene) for scene in scenes]
    patches = np.stack([layout.patches_of(painting.image, grid) for painting in painted])
    shown = [labels_of(scene, painting, grid) for scene, painting in zip(scenes, painted, strict=True)]
    return Pictures(
        grid,
        patches,
        np.stack([labels.names for labels in shown]),
        np.stack([labels.colours for labels in shown]),
        np.stack([labels.centres for labels in shown]),
        np.stack([labels.facts for labels in shown]),
    )


def _choose(asked: dict[str, list[Question]], rng: random.Random) -> list[Question]:
    chosen: list[Question] = []
    for kind, questions in asked.items():
        share = _SHARES[kind]
        count = int(share) if share >= 1 else int(rng.random() < share)
        chosen += rng.sample(questions, min(count, len(questions)))
    return chosen


def _branches(questions: list[Question], rng: random.Random) -> list[list[Question]]:
    """Ask each question by itself; now and then the last two make a conversation."""
    branches = [[question] for question in questions]
    if len(branches) > 2 and rng.random() < 0.15:
        last = branches.pop()
        branches[rng.randrange(len(branches))] += last
    return branches
