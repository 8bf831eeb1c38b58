"""Draw the sample pictures of examples/images.

Usage: python -m examples.demo_model.samples OUT_DIR
"""

import argparse
from pathlib import Path

from examples.demo_model.painting import paint
from examples.demo_model.scene import Ground, Number, Scene, Thing

_WHITE = Ground((255, 255, 255), 0, 0, 1)
_GREY = Ground((225, 228, 232), 0, 0, 2)
_DARK = Ground((20, 22, 28), 16, 15, 3)

SAMPLES: dict[str, Scene] = {
    "red_circle": Scene(280, 280, _WHITE, (Thing("circle", "red", 140, 140, 75, 0.0),), None),
    "blue_square": Scene(280, 280, _GREY, (Thing("square", "blue", 120, 150, 70, 0.1),), None),
    "three_shapes": Scene(
        420,
        280,
        _GREY,
        (
            Thing("star", "orange", 80, 90, 52, 0.2),
            Thing("circle", "green", 215, 190, 48, 0.0),
            Thing("triangle", "purple", 340, 95, 55, 0.0),
        ),
        None,
    ),
    "two_stars": Scene(
        224,
        224,
        _DARK,
        (
            Thing("star", "yellow", 63, 67, 39, 0.1),
            Thing("star", "pink", 160, 80, 33, -0.3),
            Thing("square", "green", 110, 170, 32, 0.0),
        ),
        None,
    ),
    "number": Scene(320, 224, _WHITE, (), Number("4821", "blue", 160, 112, 96, 3.0, 1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", type=Path)
    options = parser.parse_args()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    for name, scene in SAMPLES.items():
        paint(scene).image.save(options.out_dir / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
