"""What the tower is taught about a picture agrees with what was laid out."""

import numpy as np

from examples.demo_model import layout
from examples.demo_model.labels import FACT_SIZES, MARK_COLOURS, MARK_NAMES, SIDES, UNKNOWN, labels_of
from examples.demo_model.painting import paint
from examples.demo_model.samples import SAMPLES
from examples.demo_model.scene import SHAPES


def test_every_mark_is_labelled_where_it_lies() -> None:
    for scene in SAMPLES.values():
        painting = paint(scene)
        grid = layout.grid_of(scene.width, scene.height)
        labels = labels_of(scene, painting, grid)
        places = layout.patch_order(grid)
        assert labels.centres.sum() == len(painting.marks)
        for mark in painting.marks:
            row = int(mark.y * grid.rows * layout.MERGE / scene.height)
            column = int(mark.x * grid.columns * layout.MERGE / scene.width)
            (patch,) = np.flatnonzero((places == (row, column)).all(axis=1))
            assert labels.centres[patch] == 1
            assert MARK_NAMES[labels.names[patch]] == mark.name
            assert MARK_COLOURS[labels.colours[patch]] == mark.colour


def test_facts_say_what_lies_beside_each_thing() -> None:
    scene = SAMPLES["three_shapes"]
    grid = layout.grid_of(scene.width, scene.height)
    labels = labels_of(scene, paint(scene), grid)
    tokens = labels.names.reshape(-1, layout.MERGE**2)
    known = (tokens > 0).any(axis=1)
    assert (labels.facts[~known] == UNKNOWN).all()
    (of_circle,) = np.unique(labels.facts[(tokens == 1 + SHAPES.index("circle")).any(axis=1)], axis=0)
    beside = {side: tuple(of_circle[2 * i : 2 * i + 2]) for i, side in enumerate(SIDES)}
    assert beside["left"] == (1 + SHAPES.index("star"), MARK_COLOURS.index("orange"))
    assert beside["right"] == (1 + SHAPES.index("triangle"), MARK_COLOURS.index("purple"))
    assert beside["above"] == (len(SHAPES) + 1, len(MARK_COLOURS))
    assert beside["below"] == (0, 0)
    assert of_circle[8:].tolist() == [1, 1, 1, 3]


def test_facts_stay_below_their_sizes() -> None:
    for scene in SAMPLES.values():
        facts = labels_of(scene, paint(scene), layout.grid_of(scene.width, scene.height)).facts
        assert facts.shape[1] == len(FACT_SIZES)
        assert (facts < np.array(FACT_SIZES)).all()
        assert ((facts >= 0) | (facts == UNKNOWN)).all()


def test_digits_are_ranked_from_the_left() -> None:
    scene = SAMPLES["number"]
    assert scene.number is not None
    labels = labels_of(scene, paint(scene), layout.grid_of(scene.width, scene.height))
    tokens = labels.names.reshape(-1, layout.MERGE**2)
    rank_of = {MARK_NAMES.index(digit): rank for rank, digit in enumerate(scene.number.digits)}
    # A token between two digits speaks for the right one.
    wanted = [max((rank_of[name] for name in token if name > 0), default=UNKNOWN) for token in tokens.tolist()]
    assert labels.facts[:, 8].tolist() == wanted
    assert set(wanted) == {UNKNOWN, 0, 1, 2, 3}
