"""Draw a scene: its picture, and for every pixel which mark covers it."""

import functools
import math
import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from examples.demo_model.scene import Ground, Number, Scene, Thing

_OVERSAMPLING = 3
# Per colour the corners of a box in RGB that a seeded draw picks from; the boxes hold the usual CSS values.
_PALETTE: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((205, 0, 0), (255, 40, 40)),
    "orange": ((245, 125, 0), (255, 165, 25)),
    "yellow": ((235, 215, 0), (255, 255, 45)),
    "green": ((0, 125, 0), (50, 210, 60)),
    "blue": ((0, 0, 200), (50, 90, 255)),
    "purple": ((115, 0, 125), (150, 45, 175)),
    "pink": ((250, 105, 165), (255, 190, 210)),
    "brown": ((110, 55, 10), (150, 80, 45)),
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A shape or one digit as drawn: its name, colour and centre in pixels."""

    name: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Painting:
    """``image`` is RGB; ``coverage`` (height, width) holds 0 for ground and 1 + i where ``marks[i]`` lies."""

    image: Image.Image
    coverage: npt.NDArray[np.uint8]
    marks: tuple[Mark, ...]


def paint(scene: Scene) -> Painting:
    """Draw ``scene``; the same scene always gives the same pixels."""
    rng = random.Random(scene.ground.seed)
    image = Image.fromarray(_paint_ground(scene.ground, scene.width, scene.height))
    coverage = Image.new("L", image.size)
    if scene.number is not None:
        marks = _paint_number(scene.number, image, coverage, rng)
    else:
        marks = tuple(
            _paint_thing(thing, index, image, coverage, rng) for index, thing in enumerate(scene.things, start=1)
        )
    return Painting(image, np.asarray(coverage), marks)


def outline(thing: Thing) -> list[tuple[float, float]]:
    """Return the corners of a square, triangle or star, in pixels of the picture."""
    if thing.shape == "square":
        radii, first = [0.95] * 4, math.pi / 4
    elif thing.shape == "triangle":
        radii, first = [1.0] * 3, -math.pi / 2
    elif thing.shape == "star":
        radii, first = [1.0, 0.42] * 5, -math.pi / 2
    else:
        raise ValueError(f"{thing.shape} has no corners")
    step = 2 * math.pi / len(radii)
    angles = [thing.angle + first + step * i for i in range(len(radii))]
    return [
        (thing.x + thing.radius * r * math.cos(a), thing.y + thing.radius * r * math.sin(a))
        for r, a in zip(radii, angles, strict=True)
    ]


def _paint_ground(ground: Ground, width: int, height: int) -> npt.NDArray[np.uint8]:
    pixels = np.empty((height, width, 3), np.int16)
    pixels[:] = ground.rgb
    draws = np.random.default_rng(ground.seed)
    if ground.shading:
        slope = draws.uniform(-1, 1, 2) * ground.shading
        across = np.linspace(-slope[0], slope[0], width)[None, :]
        down = np.linspace(-slope[1], slope[1], height)[:, None]
        pixels += (across + down).astype(np.int16)[:, :, None]
    if ground.noise:
        grain = draws.integers(0, 256, pixels.shape, dtype=np.uint8).astype(np.int16)
        pixels += ((grain - 128) * ground.noise) >> 7
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _pick_rgb(colour: str, rng: random.Random) -> tuple[int, int, int]:
    low, high = _PALETTE[colour]
    if rng.random() < 0.5:
        # Half of the draws lie on the line between the corners, the rest anywhere in the box.
        share = rng.random()
        red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    else:
        red, green, blue = (rng.randint(a, b) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _paint_thing(thing: Thing, index: int, image: Image.Image, coverage: Image.Image, rng: random.Random) -> Mark:
    left, top = math.floor(thing.x - thing.radius) - 1, math.floor(thing.y - thing.radius) - 1
    side = math.ceil(2 * thing.radius) + 3
    mask = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    pen = ImageDraw.Draw(mask)
    if thing.shape == "circle":
        x, y, radius = ((v * _OVERSAMPLING) for v in (thing.x - left, thing.y - top, thing.radius))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        pen.polygon([((x - left) * _OVERSAMPLING, (y - top) * _OVERSAMPLING) for x, y in outline(thing)], fill=255)
    mask = mask.reduce(_OVERSAMPLING)
    image.paste(_pick_rgb(thing.colour, rng), (left, top), mask)
    coverage.paste(index, (left, top), mask.point(_THRESHOLD))
    return Mark(thing.shape, thing.colour, thing.x, thing.y)


def _paint_number(number: Number, image: Image.Image, coverage: Image.Image, rng: random.Random) -> tuple[Mark, ...]:
    font = _font(number.height)
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).text(
        (number.x, number.y), number.digits, fill=255, font=font, anchor="mm", stroke_width=number.stroke
    )
    mask = mask.rotate(number.angle, Image.Resampling.BILINEAR, center=(number.x, number.y))
    image.paste(_pick_rgb(number.colour, rng), (0, 0), mask)
    marks = []
    pen = ImageDraw.Draw(coverage)
    turn = -math.radians(number.angle)
    start = -font.getlength(number.digits) / 2
    for index, digit in enumerate(number.digits, start=1):
        width = font.getlength(digit)
        corners = [(start, -0.4), (start + width, -0.4), (start + width, 0.4), (start, 0.4)]
        pen.polygon([_turned(number, x, y * number.height, turn) for x, y in corners], fill=index)
        x, y = _turned(number, start + width / 2, 0.0, turn)
        marks.append(Mark(digit, number.colour, x, y))
        start += width
    return tuple(marks)


def _turned(number: Number, x: float, y: float, turn: float) -> tuple[float, float]:
    return (
        number.x + x * math.cos(turn) - y * math.sin(turn),
        number.y + x * math.sin(turn) + y * math.cos(turn),
    )


@functools.lru_cache(maxsize=512)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which the numbers are drawn with")
    return font


_THRESHOLD = [255 if value > 127 else 0 for value in range(256)]
