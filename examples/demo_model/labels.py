"""What a picture shows at each patch and each visual token: the tower is taught these besides the answers."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.demo_model import layout
from examples.demo_model.layout import Grid
from examples.demo_model.painting import Mark, Painting
from examples.demo_model.questions import beside
from examples.demo_model.scene import COLOURS, SHAPES, Scene, Thing

MARK_NAMES = ("ground", *SHAPES, *"0123456789")
MARK_COLOURS = ("ground", *COLOURS)
SIDES = ("left", "right", "above", "below")
# For each visual token on a mark: on each side no thing, the only thing there, or several (its shape, then its
# colour); how many marks lie left of it; how many things share its shape, share its colour, and are there at all.
FACT_SIZES = (*[len(SHAPES) + 2, len(COLOURS) + 2] * len(SIDES), 4, 5, 5, 5)
UNKNOWN = -100

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labels:
    """``names``, ``colours`` and ``centres`` by patch (N,); ``facts`` by visual token (N / 4, facts), or UNKNOWN."""

    names: Integers
    colours: Integers
    centres: Integers
    facts: Integers


def labels_of(scene: Scene, painting: Painting, grid: Grid) -> Labels:
    """Label every patch and token of ``painting`` in the tower's order."""
    height, width = painting.coverage.shape
    places = layout.patch_order(grid)
    num_rows, num_columns = grid.rows * layout.MERGE, grid.columns * layout.MERGE
    ys = ((places[:, 0] + 0.5) * height / num_rows).astype(np.int64)
    xs = ((places[:, 1] + 0.5) * width / num_columns).astype(np.int64)
    covered = painting.coverage[ys, xs].astype(np.int64)
    names = np.array([0] + [MARK_NAMES.index(mark.name) for mark in painting.marks])[covered]
    colours = np.array([0] + [MARK_COLOURS.index(mark.colour) for mark in painting.marks])[covered]
    centres = np.zeros(len(places), np.int64)
    for mark in painting.marks:
        row, column = int(mark.y * num_rows / height), int(mark.x * num_columns / width)
        centres |= (places[:, 0] == row) & (places[:, 1] == column)
    facts = np.full((len(painting.marks) + 1, len(FACT_SIZES)), UNKNOWN)
    for index, mark in enumerate(painting.marks, start=1):
        facts[index, len(SIDES) * 2] = sum(other.x < mark.x for other in painting.marks)
    for index, thing in enumerate(scene.things, start=1):
        facts[index] = _facts_about(scene, thing, painting.marks[index - 1], painting.marks)
    # Of the marks on a token's four patches the last one speaks for it.
    return Labels(names, colours, centres, facts[covered.reshape(-1, layout.MERGE**2).max(axis=1)])


def _facts_about(scene: Scene, thing: Thing, mark: Mark, marks: tuple[Mark, ...]) -> list[int]:
    facts: list[int] = []
    for side in SIDES:
        others = beside(scene, thing, side)
        if others is None:
            facts += [UNKNOWN, UNKNOWN]
        elif len(others) > 1:
            facts += [len(SHAPES) + 1, len(COLOURS) + 1]
        else:
            facts += [1 + SHAPES.index(others[0].shape), 1 + COLOURS.index(others[0].colour)] if others else [0, 0]
    return [
        *facts,
        sum(other.x < mark.x for other in marks),
        sum(other.shape == thing.shape for other in scene.things),
        sum(other.colour == thing.colour for other in scene.things),
        len(scene.things),
    ]
