"""Say what a demo picture holds: a few coloured shapes, or one number, laid out by a seed."""

import math
import random
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
MIN_SIDE = 112
MAX_SIDE = 448
_MAX_PLACING_TRIES = 60
_SMALLEST_RADIUS = 0.14
_LARGEST_RADIUS = {1: 0.27, 2: 0.23, 3: 0.21, 4: 0.19}
# Font sizes, as shares of the side of a square of the picture's area: what a person reads without stooping.
_SMALLEST_FONT, _LARGEST_FONT = 0.26, 0.5

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape. ``x``, ``y`` (centre) and ``radius`` in pixels; ``angle`` in radians."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True, slots=True)
class Number:
    """One to four digits centred at ``x``, ``y``; ``height`` is the font size in pixels, ``angle`` in degrees."""

    digits: str
    colour: str
    x: float
    y: float
    height: int
    angle: float
    stroke: int


@dataclass(frozen=True, slots=True)
class Ground:
    """The background: a base colour, the strength of its noise and of its shading (0 for none), and their seed."""

    rgb: tuple[int, int, int]
    noise: int
    shading: int
    seed: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture before it is drawn. Either ``things`` or ``number`` is filled, never both."""

    width: int
    height: int
    ground: Ground
    things: tuple[Thing, ...]
    number: Number | None


def sample_size(rng: random.Random) -> Size:
    """Return (width, height), each from 112 to 448 pixels; four in ten are squares."""
    width = round(math.exp(rng.uniform(math.log(MIN_SIDE), math.log(MAX_SIDE))))
    draw = rng.random()
    if draw < 0.4:
        return width, width
    if draw < 0.9:
        ratio = math.exp(rng.uniform(math.log(0.5), math.log(2.0)))
        return width, min(MAX_SIDE, max(MIN_SIDE, round(width * ratio)))
    return width, round(math.exp(rng.uniform(math.log(MIN_SIDE), math.log(MAX_SIDE))))


def sample_scene(rng: random.Random, size: Size | None = None, number_share: float = 0.3) -> Scene:
    """Lay out a picture of a number, with probability ``number_share``, or of shapes."""
    if rng.random() < number_share:
        return sample_number_scene(rng, size)
    return sample_shape_scene(rng, rng.choices((1, 2, 3, 4), (18, 28, 28, 26))[0], size)


def sample_shape_scene(rng: random.Random, num_things: int, size: Size | None = None) -> Scene:
    """Lay out ``num_things`` shapes (1 to 4) that do not touch; ``size`` is (width, height), else drawn."""
    if not 1 <= num_things <= 4:
        raise ValueError(f"a picture holds one to four shapes, not {num_things}")
    width, height = size or sample_size(rng)
    things: list[Thing] = []
    while len(things) < num_things:
        things = _place(rng, num_things, width, height)
    return Scene(width, height, _sample_ground(rng), tuple(things), None)


def sample_number_scene(rng: random.Random, size: Size | None = None) -> Scene:
    """Lay out a number of one to four digits, without leading zeros."""
    width, height = size or sample_size(rng)
    side = math.sqrt(width * height)
    # A digit of the font is about 0.6 of its size wide, and the turned text must stay inside the picture.
    room = {n: min(width / (0.68 * n + 0.25), height / 1.2, _LARGEST_FONT * side) for n in (1, 2, 3, 4)}
    num_digits = rng.choice([n for n in room if n == 1 or room[n] >= _SMALLEST_FONT * side])
    lowest = 0 if num_digits == 1 else 10 ** (num_digits - 1)
    digits = str(rng.randrange(lowest, 10**num_digits))
    font_px = round(rng.uniform(min(_SMALLEST_FONT * side, room[num_digits]), room[num_digits]))
    half_width, half_height = 0.33 * font_px * num_digits, 0.45 * font_px
    x = _uniform_inside(rng, width, half_width + 0.06 * font_px)
    y = _uniform_inside(rng, height, half_height + 0.05 * font_px)
    stroke = round(font_px * rng.choice((0.015, 0.03)))
    number = Number(digits, rng.choice(COLOURS), x, y, font_px, rng.uniform(-4.0, 4.0), stroke)
    return Scene(width, height, _sample_ground(rng), (), number)


def _place(rng: random.Random, num_things: int, width: int, height: int) -> list[Thing]:
    """Try to place the things; a shorter list means that they did not fit."""
    side = min(width, height)
    things: list[Thing] = []
    for _ in range(_MAX_PLACING_TRIES):
        radius = side * rng.uniform(_SMALLEST_RADIUS, _LARGEST_RADIUS[num_things])
        x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        # Centres a little apart across, so that an order from left to right can be seen.
        if all(
            math.hypot(x - t.x, y - t.y) > radius + t.radius + 0.03 * side and abs(x - t.x) > 0.05 * side
            for t in things
        ):
            shape = rng.choice(SHAPES)
            tilt = {"circle": 0.0, "square": 0.22, "triangle": 0.35, "star": math.pi}[shape]
            things.append(Thing(shape, rng.choice(COLOURS), x, y, radius, rng.uniform(-tilt, tilt)))
        if len(things) == num_things:
            break
    return things


def _sample_ground(rng: random.Random) -> Ground:
    draw = rng.random()
    if draw < 0.3:
        rgb = (255, 255, 255)
    elif draw < 0.65:
        level = rng.randrange(215, 250)
        rgb = (level + rng.randrange(-8, 6), level + rng.randrange(-8, 6), level + rng.randrange(-8, 6))
    elif draw < 0.8:
        level = rng.randrange(120, 190)
        rgb = (level, level, level)
    elif draw < 0.85:
        rgb = (0, 0, 0)
    else:
        level = rng.randrange(12, 45)
        rgb = (level + rng.randrange(-8, 8), level + rng.randrange(-8, 8), level + rng.randrange(-8, 8))
    noise = rng.choice((0, 0, 8, 16, 24, 32))
    shading = rng.choice((0, 0, 0, 15, 30))
    return Ground(rgb, noise, shading, rng.getrandbits(32))


def _uniform_inside(rng: random.Random, side: int, half_extent: float) -> float:
    """Return a centre that keeps ``half_extent`` inside ``side``; the middle where there is no room to choose."""
    if 2 * half_extent >= side:
        return side / 2
    return rng.uniform(half_extent, side - half_extent)
