"""Sizes as settings write them: numbers, or numbers with a unit."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_SIZE_UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_PIXEL_UNITS = {"": 1, "MP": 1_000_000}


def _parse_with_units(value: object, units: dict[str, int], example: str) -> object:
    """Turn '64 MiB' into a number; leave numbers alone for pydantic to judge."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value)
    unit = match.group(2).upper() if match else None
    if match is None or unit not in units:
        raise ValueError(f"{value!r} is not a size; write for example {example}")
    return int(float(match.group(1)) * units[unit])


def _bytes(value: object) -> object:
    return _parse_with_units(value, {"": 1, **_SIZE_UNITS}, "'64 MiB' or 67108864")


def _pixels(value: object) -> object:
    return _parse_with_units(value, _PIXEL_UNITS, "'50 MP' or 50000000")


ByteSize = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]
PixelCount = Annotated[int, BeforeValidator(_pixels), Field(gt=0)]
