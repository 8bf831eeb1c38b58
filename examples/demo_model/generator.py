"""Make the demo model's examples: a seed gives the pictures, one question and its true answer.

Seeds are split once: ``TRAIN_SEEDS`` are trained on, ``DEV_SEEDS`` steer the training, ``EVAL_SEEDS`` are only ever
asked at the end. Usage: python -m examples.demo_model.generator OUT_DIR [--first SEED] [--count N]
"""

import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from examples.demo_model.painting import paint
from examples.demo_model.pairs import question_without_picture, questions_about_pair, sample_pair
from examples.demo_model.questions import Question, questions_about
from examples.demo_model.scene import Scene, sample_number_scene, sample_scene

TRAIN_SEEDS = range(1_000_000_000)
DEV_SEEDS = range(1_000_000_000, 1_100_000_000)
EVAL_SEEDS = range(2_000_000_000, 2_100_000_000)
QUESTION_KINDS = (
    "colour",
    "shape",
    "count",
    "left_right",
    "above_below",
    "number",
    "describe",
    "missing",
    "same_shape",
    "which_picture",
    "no_picture",
)
PAIR_KINDS = ("same_shape", "which_picture")


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt: none, one or two pictures and a question whose answer is known."""

    seed: int
    scenes: tuple[Scene, ...]
    question: Question

    def images(self) -> list[Image.Image]:
        return [paint(scene).image for scene in self.scenes]


def example(seed: int) -> Example:
    """Return the example of ``seed``; the kinds of question take turns as seeds count up."""
    if seed < 0:
        raise ValueError(f"seeds count up from 0, got {seed}")
    kind = QUESTION_KINDS[seed % len(QUESTION_KINDS)]
    rng = random.Random(seed)
    while True:
        scenes, asked = _sample(kind, rng)
        if kind in asked:
            return Example(seed, scenes, rng.choice(asked[kind]))


def _sample(kind: str, rng: random.Random) -> tuple[tuple[Scene, ...], dict[str, list[Question]]]:
    if kind == "no_picture":
        return (), {kind: [question_without_picture(rng)]}
    if kind in PAIR_KINDS:
        first, second = sample_pair(rng, (None, None))
        return (first, second), questions_about_pair(first, second, rng)
    scene = sample_number_scene(rng) if kind == "number" else sample_scene(rng)
    return (scene,), questions_about(scene, rng)


def is_right(question: Question, answer: str) -> bool:
    """Compare an answer with the truth; a description may list its shapes in any order."""
    given, wanted = answer.strip(), question.answer
    if question.kind != "describe":
        return given == wanted
    return sorted(_listed(given)) == sorted(_listed(wanted))


def _listed(sentence: str) -> list[str]:
    return re.split(r", | and ", sentence.removeprefix("There is ").removesuffix("."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--first", type=int, default=EVAL_SEEDS.start)
    parser.add_argument("--count", type=int, default=10)
    options = parser.parse_args()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    lines = []
    for seed in range(options.first, options.first + options.count):
        made = example(seed)
        names = [f"{seed}_{index}.png" for index in range(len(made.scenes))]
        for name, image in zip(names, made.images(), strict=True):
            image.save(options.out_dir / name)
        asked = made.question
        lines.append(
            json.dumps(
                {
                    "seed": seed,
                    "kind": asked.kind,
                    "images": names,
                    "question": asked.text,
                    "answer": asked.answer,
                }
            )
        )
    (options.out_dir / "questions.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} questions in {options.out_dir / 'questions.jsonl'}")


if __name__ == "__main__":
    main()
