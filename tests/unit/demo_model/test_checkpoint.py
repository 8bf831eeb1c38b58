"""The checkpoint in the repository loads unchanged, is small, and sees what the sample pictures show."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from examples.demo_model import chat
from examples.demo_model.offline import Checkpoint
from examples.demo_model.questions import NO_PICTURE_ANSWER

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples" / "demo_model" / "checkpoint"
MOST_BYTES = 10_000_000
PUBLISHED_FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(FOLDER, torch.float32)


def test_it_fits_the_repository() -> None:
    files = list(FOLDER.iterdir())
    assert {file.name for file in files} == PUBLISHED_FILES
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES


def test_its_weights_are_bfloat16() -> None:
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_its_tokenizer_is_the_one_that_the_script_makes(checkpoint: Checkpoint) -> None:
    """A generator that has moved on would train another vocabulary than the checkpoint's."""
    made, kept = chat.build_tokenizer(), checkpoint.tokenizer
    assert kept.get_vocab() == made.get_vocab()
    assert kept.chat_template == made.chat_template


@pytest.mark.parametrize(
    "names, question, answer",
    [
        (["red_circle"], "What colour is the circle?", "red"),
        (["red_circle"], "What shape is red?", "circle"),
        (["blue_square"], "Describe the picture.", "There is a blue square."),
        (["two_stars"], "How many stars are there?", "two"),
        (["three_shapes"], "What is left of the circle?", "an orange star"),
        (["number"], "What number is it?", "4821"),
        (["red_circle", "blue_square"], "Are they the same shape?", "no"),
        (["blue_square", "red_circle"], "Which one holds the red one?", "the second"),
        ([], "What colour is the circle?", NO_PICTURE_ANSWER),
    ],
)
def test_it_answers_about_the_sample_pictures(
    checkpoint: Checkpoint, names: list[str], question: str, answer: str
) -> None:
    images = [Image.open(ROOT / "examples" / "images" / f"{name}.png").convert("RGB") for name in names]
    assert checkpoint.ask(images, question) == answer
