"""The generator's promises: the same seed gives the same example, splits share no seed, answers are true."""

import itertools
import math
import random
import re

import numpy as np
import pytest

from examples.demo_model.generator import (
    DEV_SEEDS,
    EVAL_SEEDS,
    QUESTION_KINDS,
    TRAIN_SEEDS,
    Example,
    example,
    is_right,
)
from examples.demo_model.painting import outline, paint
from examples.demo_model.questions import NO_PICTURE_ANSWER, NUMBER_WORDS, Question, beside
from examples.demo_model.scene import COLOURS, MAX_SIDE, MIN_SIDE, SHAPES, Scene, Thing, sample_scene

_EXAMPLES = [example(seed) for seed in range(EVAL_SEEDS.start, EVAL_SEEDS.start + 1100)]


def _of(kind: str) -> list[Example]:
    found = [made for made in _EXAMPLES if made.question.kind == kind]
    assert len(found) == 100
    return found


def _pointed_at(scene: Scene, text: str) -> list[Thing]:
    """The things that "the [colour] [shape]" in ``text`` may mean."""
    match = re.search(rf"the (?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})\b", text)
    assert match is not None, text
    colour, shape = match.groups()
    return [t for t in scene.things if t.shape == shape and colour in (None, t.colour)]


def test_same_seed_gives_the_same_pixels_and_question() -> None:
    for seed in range(40):
        first, second = example(seed), example(seed)
        assert first == second
        for one, other in zip(first.images(), second.images(), strict=True):
            assert np.array_equal(np.asarray(one), np.asarray(other))


def test_neighbouring_seeds_give_different_pictures() -> None:
    assert len({made.scenes for made in _EXAMPLES if made.scenes}) == 1000


def test_splits_share_no_seed() -> None:
    splits = sorted((TRAIN_SEEDS, DEV_SEEDS, EVAL_SEEDS), key=lambda split: split.start)
    for earlier, later in itertools.pairwise(splits):
        assert earlier.stop <= later.start
    assert all(len(split) > 1_000_000 for split in splits)


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="count up from 0"):
        example(-1)


def test_pictures_have_the_promised_sizes() -> None:
    sizes = [image.size for made in _EXAMPLES[:200] for image in made.images()]
    assert all(MIN_SIDE <= side <= MAX_SIDE for size in sizes for side in size)
    assert any(width > 1.5 * height for width, height in sizes)
    assert any(height > 1.5 * width for width, height in sizes)


def test_shapes_lie_inside_and_apart() -> None:
    for seed in range(300):
        scene = sample_scene(random.Random(seed))
        for index, thing in enumerate(scene.things):
            assert thing.radius <= thing.x <= scene.width - thing.radius
            assert thing.radius <= thing.y <= scene.height - thing.radius
            for other in scene.things[:index]:
                assert math.dist((thing.x, thing.y), (other.x, other.y)) > thing.radius + other.radius


def test_a_shape_covers_its_centre_and_not_its_surroundings() -> None:
    for seed in range(60):
        scene = sample_scene(random.Random(seed))
        coverage = paint(scene).coverage
        for index, thing in enumerate(scene.things, start=1):
            assert coverage[int(thing.y), int(thing.x)] == index
            ys, xs = np.nonzero(coverage == index)
            assert np.hypot(ys - thing.y, xs - thing.x).max() <= thing.radius + 2


def test_a_star_has_ten_corners_a_triangle_three_a_square_four() -> None:
    corners = {shape: len(outline(Thing(shape, "red", 0, 0, 1, 0))) for shape in ("star", "triangle", "square")}
    assert corners == {"star": 10, "triangle": 3, "square": 4}
    with pytest.raises(ValueError, match="no corners"):
        outline(Thing("circle", "red", 0, 0, 1, 0))


def test_colour_is_asked_of_one_thing_only() -> None:
    for made in _of("colour"):
        (scene,) = made.scenes
        if scene.number is not None:
            assert "the number" in made.question.text
            assert made.question.answer == scene.number.colour
        else:
            (thing,) = _pointed_at(scene, made.question.text)
            assert made.question.answer == thing.colour


def test_shape_is_asked_of_one_colour_only() -> None:
    for made in _of("shape"):
        (scene,) = made.scenes
        (colour,) = [colour for colour in COLOURS if re.search(rf"\b{colour}\b", made.question.text)]
        (thing,) = [thing for thing in scene.things if thing.colour == colour]
        assert made.question.answer == thing.shape


def test_counts_are_true() -> None:
    answers = set()
    for made in _of("count"):
        (scene,) = made.scenes
        words = made.question.text
        counted = [
            thing
            for thing in scene.things
            if re.search(rf"\b({thing.shape}s|{thing.colour} shapes|(many|the) shapes)\b", words)
        ]
        assert made.question.answer == NUMBER_WORDS[len(counted)]
        answers.add(made.question.answer)
    assert answers == set(NUMBER_WORDS)


@pytest.mark.parametrize(
    ("kind", "axis", "before"), [("left_right", "x", "left"), ("above_below", "y", "above")], ids=str
)
def test_relations_follow_from_the_geometry(kind: str, axis: str, before: str) -> None:
    for made in _of(kind):
        (scene,) = made.scenes
        (reference,) = _pointed_at(scene, made.question.text)
        sign = 1 if before in made.question.text else -1
        steps = {
            other: sign * ((reference.x - other.x) if axis == "x" else (reference.y - other.y))
            for other in scene.things
            if other is not reference
        }
        # Nothing may lie nearly level with the reference, where people would disagree.
        assert all(abs(step) > 0.9 * max(other.radius, reference.radius) for other, step in steps.items())
        named = [f"{'an' if t.colour == 'orange' else 'a'} {t.colour} {t.shape}" for t, s in steps.items() if s > 0]
        assert [made.question.answer] == (named or ["nothing"])


def test_a_thing_nearly_level_makes_the_relation_unclear() -> None:
    reference, level = Thing("circle", "red", 100, 100, 20, 0), Thing("star", "blue", 105, 20, 20, 0)
    scene = Scene(200, 200, example(0).scenes[0].ground, (reference, level), None)
    assert beside(scene, reference, "left") is None
    assert beside(scene, reference, "above") == (level,)
    assert beside(scene, reference, "below") == ()


def test_numbers_are_read_as_drawn() -> None:
    lengths = set()
    for made in _of("number"):
        (scene,) = made.scenes
        assert scene.number is not None
        assert made.question.answer == scene.number.digits == str(int(scene.number.digits))
        lengths.add(len(scene.number.digits))
        painted = paint(scene)
        assert "".join(mark.name for mark in painted.marks) == scene.number.digits
        assert [mark.x for mark in painted.marks] == sorted(mark.x for mark in painted.marks)
    assert lengths == {1, 2, 3, 4}


def test_digits_are_not_cut_off_by_the_border() -> None:
    for made in _of("number"):
        (scene,) = made.scenes
        pixels = np.asarray(made.images()[0]).astype(int)
        assert scene.number is not None
        ink = paint(scene)
        rows, columns = np.nonzero(ink.coverage)
        colour = np.median(pixels[rows, columns], axis=0)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        away_from_ground = np.abs(border - np.array(scene.ground.rgb)).max(axis=1) > 100
        assert not away_from_ground.any(), (made.seed, colour)


def test_descriptions_name_everything_from_left_to_right() -> None:
    for made in _of("describe"):
        (scene,) = made.scenes
        if scene.number is not None:
            assert made.question.answer == f"There is the number {scene.number.digits} in {scene.number.colour}."
        else:
            ordered = [(t.colour, t.shape) for t in sorted(scene.things, key=lambda t: t.x)]
            assert re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", made.question.answer) == ordered


def test_missing_things_are_missing() -> None:
    for made in _of("missing"):
        (scene,) = made.scenes
        thing = made.question.answer.removeprefix("there is no ")
        assert scene.number is None
        assert thing == "number" or all(t.shape != thing for t in scene.things)


def test_pairs_are_compared_truly() -> None:
    answers = set()
    for made in _of("same_shape"):
        first, second = (scene.things for scene in made.scenes)
        assert len(first) == len(second) == 1
        assert made.question.answer == ("yes" if first[0].shape == second[0].shape else "no")
        answers.add(made.question.answer)
    for made in _of("which_picture"):
        wanted = [w for w in (*COLOURS, *SHAPES) if re.search(rf"\b{w}\b", made.question.text)]
        held = [sum(wanted[0] in (t.colour, t.shape) for t in scene.things) for scene in made.scenes]
        assert len(wanted) == 1
        assert sorted(held) == [0, 1]
        assert made.question.answer == ("the first" if held[0] else "the second")
        answers.add(made.question.answer)
    assert answers == {"yes", "no", "the first", "the second"}


def test_without_a_picture_the_answer_asks_for_one() -> None:
    for made in _of("no_picture"):
        assert made.scenes == ()
        assert made.question.answer == NO_PICTURE_ANSWER


def test_kinds_take_turns() -> None:
    kinds = [made.question.kind for made in _EXAMPLES[: len(QUESTION_KINDS)]]
    assert sorted(kinds) == sorted(QUESTION_KINDS)


def test_a_description_may_list_in_any_order_but_must_be_complete() -> None:
    asked = Question("describe", "What do you see?", "There is a red circle, a blue star and a pink square.")
    assert is_right(asked, " There is a pink square, a red circle and a blue star.")
    assert not is_right(asked, "There is a pink square and a red circle.")
    assert not is_right(asked, "There is a blue circle, a red star and a pink square.")
    assert not is_right(Question("colour", "", "red"), "red circle")
