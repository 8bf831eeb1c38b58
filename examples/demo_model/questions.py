"""Ask about one picture: every question that has exactly one true answer, in several phrasings."""

import random
from dataclasses import dataclass

from examples.demo_model.scene import COLOURS, SHAPES, Scene, Thing

NUMBER_WORDS = ("none", "one", "two", "three", "four")
NO_PICTURE_ANSWER = "I need a picture to answer that."
_BESIDE = {
    "left": (
        "What is left of {}?",
        "What is to the left of {}?",
        "Which shape is left of {}?",
        "What lies left of {}?",
    ),
    "right": ("What is right of {}?", "What is to the right of {}?", "Which shape is right of {}?"),
}
_OVER = {
    "above": ("What is above {}?", "What lies above {}?", "Which shape is above {}?", "What do you see above {}?"),
    "below": ("What is below {}?", "What is under {}?", "Which shape is below {}?"),
}
_COLOUR = (
    "What colour is {}?",
    "What color is {}?",
    "Which colour is {}?",
    "What colour does {} have?",
    "Tell me the colour of {}.",
    "What is the colour of {}?",
)
_SHAPE = (
    "What shape is {}?",
    "Which shape is {}?",
    "What is the shape of the {} thing?",
    "Which shape is coloured {}?",
    "What shape is the {} one?",
)
_COUNT = ("How many {} are there?", "How many {} do you see?", "Count the {}.", "How many {} are in the picture?")
_NUMBER = (
    "What number is it?",
    "Read the number.",
    "Which number do you see?",
    "What number is in the picture?",
    "What number is shown?",
    "Which number is written here?",
)
_DESCRIBE = (
    "Describe the picture.",
    "What is in this image?",
    "What do you see?",
    "Describe this image in one sentence.",
    "What does the picture show?",
    "What is in the picture?",
    "Describe the image.",
)


@dataclass(frozen=True, slots=True)
class Question:
    """``kind`` names the question type that accuracy is reported by."""

    kind: str
    text: str
    answer: str


def article(colour: str) -> str:
    return "an" if colour[0] in "aeiou" else "a"


def name_of(thing: Thing) -> str:
    """Return for example "a red circle"."""
    return f"{article(thing.colour)} {thing.colour} {thing.shape}"


def describe(scene: Scene) -> str:
    """Return one sentence that names everything, shapes from left to right."""
    if scene.number is not None:
        return f"There is the number {scene.number.digits} in {scene.number.colour}."
    names = [name_of(thing) for thing in sorted(scene.things, key=lambda thing: thing.x)]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"There is {listed}."


def references(scene: Scene) -> list[tuple[Thing, str]]:
    """Return every way to point at exactly one thing: by shape alone, by colour and shape."""
    found: list[tuple[Thing, str]] = []
    for thing in scene.things:
        alike = [other for other in scene.things if other.shape == thing.shape]
        if len(alike) == 1:
            found.append((thing, f"the {thing.shape}"))
        if sum(other.colour == thing.colour for other in alike) == 1:
            found.append((thing, f"the {thing.colour} {thing.shape}"))
    return found


def beside(scene: Scene, reference: Thing, side: str) -> tuple[Thing, ...] | None:
    """Return the things clearly on ``side`` of ``reference``; None where one of them is neither on it nor off it.

    Clearly: the centres differ along that axis by more than 0.9 of the larger radius.
    """
    sign = -1 if side in ("left", "above") else 1
    found: list[Thing] = []
    for other in scene.things:
        if other is reference:
            continue
        step = other.x - reference.x if side in ("left", "right") else other.y - reference.y
        if abs(step) <= 0.9 * max(other.radius, reference.radius):
            return None
        if step * sign > 0:
            found.append(other)
    return tuple(found)


def questions_about(scene: Scene, rng: random.Random) -> dict[str, list[Question]]:
    """Return by question type what can be asked about ``scene``; a type that it does not allow is absent."""
    asked = {"describe": [Question("describe", rng.choice(_DESCRIBE), describe(scene))]}
    if scene.number is not None:
        asked["number"] = [Question("number", rng.choice(_NUMBER), scene.number.digits)]
        asked["colour"] = [Question("colour", rng.choice(_COLOUR).format("the number"), scene.number.colour)]
        return asked
    pointed = references(scene)
    alone = [(thing, text) for thing, text in pointed if text.count(" ") == 1]
    asked["colour"] = [Question("colour", rng.choice(_COLOUR).format(text), thing.colour) for thing, text in alone]
    asked["shape"] = [
        Question("shape", rng.choice(_SHAPE).format(thing.colour), thing.shape)
        for thing in scene.things
        if sum(other.colour == thing.colour for other in scene.things) == 1
    ]
    asked["count"] = _counts(scene, rng)
    asked["left_right"] = _relations(scene, pointed, _BESIDE, "left_right", rng)
    asked["above_below"] = _relations(scene, pointed, _OVER, "above_below", rng)
    missing = rng.choice(SHAPES)
    if all(thing.shape != missing for thing in scene.things):
        text = rng.choice(_COLOUR).format(f"the {missing}")
        asked["missing"] = [Question("missing", text, f"there is no {missing}")]
    else:
        asked["missing"] = [Question("missing", rng.choice(_NUMBER), "there is no number")]
    return {kind: questions for kind, questions in asked.items() if questions}


def _counts(scene: Scene, rng: random.Random) -> list[Question]:
    """Count every shape there is, one that there is not, one colour, and all."""
    present = sorted({thing.shape for thing in scene.things})
    absent = [shape for shape in SHAPES if shape not in present]
    named = [(f"{shape}s", sum(t.shape == shape for t in scene.things)) for shape in present]
    if absent:
        named.append((f"{rng.choice(absent)}s", 0))
    colour = rng.choice(COLOURS if rng.random() < 0.2 else [thing.colour for thing in scene.things])
    named.append((f"{colour} shapes", sum(t.colour == colour for t in scene.things)))
    named.append(("shapes", len(scene.things)))
    return [Question("count", rng.choice(_COUNT).format(text), NUMBER_WORDS[number]) for text, number in named]


def _relations(
    scene: Scene,
    pointed: list[tuple[Thing, str]],
    phrasings: dict[str, tuple[str, ...]],
    kind: str,
    rng: random.Random,
) -> list[Question]:
    """Ask what is on a side of a thing, where that is one thing or nothing."""
    found: list[Question] = []
    for reference, text in pointed:
        for side, forms in phrasings.items():
            others = beside(scene, reference, side)
            if others is not None and len(others) <= 1:
                answer = name_of(others[0]) if others else "nothing"
                found.append(Question(kind, rng.choice(forms).format(text), answer))
    return found
