"""What the messages of the wire require of their values."""

import math
import re
from collections.abc import Sequence
from typing import TypeAlias

from transfer.dtypes import DTYPE_BYTES

Nested: TypeAlias = "int | float | Sequence[Nested]"
_ID = re.compile("[ -~]{1,256}")
_ENDPOINT = re.compile("tcp://[!-~]{1,255}:([0-9]{1,5})")
_MAX_PORT = 2**16 - 1


def require_positive(name: str, value: float) -> None:
    """Raises ValueError unless `value` is positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def require_id(name: str, value: str) -> None:
    """Raises ValueError unless `value` is 1 to 256 printable ASCII characters."""
    if _ID.fullmatch(value) is None:
        raise ValueError(f"{name} must be 1 to 256 printable ASCII characters, got {value[:300]!r}")


def require_endpoints(endpoints: Sequence[str]) -> None:
    """Raises ValueError unless there is at least one, all are distinct, and each is "tcp://host:port"."""
    if not endpoints or len(set(endpoints)) != len(endpoints):
        raise ValueError("endpoints must be present and distinct")
    for endpoint in endpoints:
        found = _ENDPOINT.fullmatch(endpoint)
        if found is None or not 0 < int(found[1]) <= _MAX_PORT:
            raise ValueError(f"an endpoint is tcp://host:port, got {endpoint[:300]!r}")


def require_embedding(num_tokens: int, width: int, dtype: str, expected_bytes: int) -> None:
    """Raises ValueError unless a tensor [num_tokens, width] of `dtype` exists and has `expected_bytes`."""
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"unknown dtype {dtype!r}, expected one of {sorted(DTYPE_BYTES)}")
    if num_tokens < 1 or width < 1:
        raise ValueError(f"an embedding has at least one token and one column, got [{num_tokens}, {width}]")
    if expected_bytes != num_tokens * width * DTYPE_BYTES[dtype]:
        raise ValueError(f"expected_bytes {expected_bytes} does not fit [{num_tokens}, {width}] of {dtype}")


def flatten(nested: Nested) -> tuple[tuple[int, ...], tuple[int | float, ...]]:
    """Shape and values in row-major order; raises ValueError where rows differ in length."""
    if isinstance(nested, int | float):
        return (), (nested,)
    parts = [flatten(part) for part in nested]
    if len({shape for shape, _ in parts}) > 1:
        raise ValueError("metadata must be rectangular")
    inner = parts[0][0] if parts else ()
    return (len(parts), *inner), tuple(value for _, values in parts for value in values)
