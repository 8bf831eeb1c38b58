"""Writes PNG files, so that commands that show a picture need no library for it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable


def png_file(side: int, rows: Iterable[bytes]) -> bytes:
    """A PNG file (RFC 2083), `side` pixels square; each row is `side` times red, green and blue, one byte each."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
