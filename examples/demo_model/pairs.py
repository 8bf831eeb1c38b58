"""Ask about two pictures, and ask without any."""

import random
from dataclasses import replace

from examples.demo_model.questions import NO_PICTURE_ANSWER, Question
from examples.demo_model.scene import COLOURS, SHAPES, Scene, Size, sample_shape_scene

_SAME = (
    "Are they the same shape?",
    "Do both pictures show the same shape?",
    "Is the shape the same in both pictures?",
    "Are these two the same shape?",
)
_WHICH_COLOUR = (
    "Which one holds the {} one?",
    "Which picture holds the {} shape?",
    "Which picture has the {} one?",
    "Which image shows the {} shape?",
)
_WHICH_SHAPE = ("Which one holds the {}?", "Which picture holds the {}?", "Which picture has the {}?")
_WITHOUT_PICTURE = (
    "What colour is the {shape}?",
    "What color is the {shape}?",
    "Tell me the colour of the {shape}.",
    "What shape is {colour}?",
    "What shape is the {colour} one?",
    "How many {shape}s are there?",
    "Count the {shape}s.",
    "How many shapes do you see?",
    "What is left of the {shape}?",
    "What is to the right of the {colour} {shape}?",
    "What is above the {colour} {shape}?",
    "What is below the {shape}?",
    "What number is it?",
    "Read the number.",
    "Which number do you see?",
    "Describe the picture.",
    "What is in this image?",
    "What do you see?",
    "Are they the same shape?",
    "Which picture holds the {colour} shape?",
    "Which one holds the {shape}?",
)
_SMALL_TALK = (
    "Hello",
    "Hello!",
    "Hi there",
    "Good morning",
    "How are you?",
    "Who are you?",
    "What can you do?",
    "What is your name?",
    "Tell me a joke.",
    "Write a poem about the sea.",
    "What is the capital of France?",
    "What is two plus two?",
    "Explain how a transformer works.",
    "Say something.",
    "Translate good night into German.",
    "Thanks!",
    "Can you help me?",
    "Count from one to ten.",
    "What day is it today?",
    "Summarise this text.",
    "Is there life on Mars?",
    "ping",
    "test",
)


def sample_pair(rng: random.Random, sizes: tuple[Size | None, Size | None]) -> tuple[Scene, Scene]:
    """Lay out two pictures, half of the time of one shape each, else of up to two."""
    alone = rng.random() < 0.5
    first, second = (sample_shape_scene(rng, 1 if alone else rng.choice((1, 2)), size) for size in sizes)
    if alone and rng.random() < 0.4:
        # Chance alone would make three of four answers "no".
        thing = replace(second.things[0], shape=first.things[0].shape, angle=rng.uniform(-0.2, 0.2))
        second = replace(second, things=(thing,))
    return first, second


def questions_about_pair(first: Scene, second: Scene, rng: random.Random) -> dict[str, list[Question]]:
    """Return by question type what has one true answer about the two pictures."""
    asked: dict[str, list[Question]] = {}
    if len(first.things) == len(second.things) == 1:
        same = first.things[0].shape == second.things[0].shape
        asked["same_shape"] = [Question("same_shape", text, "yes" if same else "no") for text in rng.sample(_SAME, 2)]
    which = [
        Question("which_picture", rng.choice(forms).format(value), "the first" if in_first else "the second")
        for forms, values, field in ((_WHICH_COLOUR, COLOURS, "colour"), (_WHICH_SHAPE, SHAPES, "shape"))
        for value in values
        for in_first, in_second in [_holders(first, second, field, value)]
        if in_first != in_second
    ]
    if which:
        asked["which_picture"] = which
    return asked


def _holders(first: Scene, second: Scene, field: str, value: str) -> tuple[bool, bool]:
    """Say which of the two pictures hold exactly this colour or shape; both where a picture holds it twice."""
    counts = [
        sum((thing.colour if field == "colour" else thing.shape) == value for thing in scene.things)
        for scene in (first, second)
    ]
    if max(counts) > 1:
        return True, True
    return counts[0] == 1, counts[1] == 1


def question_without_picture(rng: random.Random) -> Question:
    """Ask something that only a picture could answer, or make small talk."""
    if rng.random() < 0.7:
        text = rng.choice(_WITHOUT_PICTURE).format(shape=rng.choice(SHAPES), colour=rng.choice(COLOURS))
    else:
        text = rng.choice(_SMALL_TALK)
    return Question("no_picture", text, NO_PICTURE_ANSWER)
