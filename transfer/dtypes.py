"""Names and sizes of the element types an embedding may have on the wire."""

DTYPE_BYTES: dict[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes per element, by the name that travels."""
