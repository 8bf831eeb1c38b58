"""How an MP4 or QuickTime file wants its pictures turned, from the track header alone (ISO/IEC 14496-12, box `tkhd`).

Telephones store pictures as the sensor gives them and write the turn into this matrix; players and decoders obey it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MATRIX_OFFSET = {0: 40, 1: 52}
"""Bytes before the matrix, by the box's version."""
_QUARTER_TURNS = {(0, 1): 90, (-1, 0): 180, (0, -1): 270}
_ONE = 1 << 16
_MAX_BOXES = 10_000


def read_rotation(data: bytes) -> int:
    """Degrees clockwise, 0, 90, 180 or 270, by which the video track is to be turned; 0 for files of other kinds."""
    if data[4:8] != b"ftyp":
        return 0
    for kind, moov in _boxes(data, 0, len(data)):
        if kind != b"moov":
            continue
        for kind_of_track, track in _boxes(data, *moov):
            if kind_of_track == b"trak" and _is_video(data, track):
                return _track_rotation(data, track)
    return 0


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Kind and content, from and to, of the boxes between `start` and `end`; ends at the first broken one."""
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        num_bytes, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if num_bytes == 1 and start + 16 <= end:
            (num_bytes,), header = struct.unpack_from(">Q", data, start + 8), 16
        elif num_bytes == 0:
            num_bytes = end - start
        if num_bytes < header or start + num_bytes > end:
            return
        yield kind, (start + header, start + num_bytes)
        start += num_bytes


def _is_video(data: bytes, track: tuple[int, int]) -> bool:
    for kind, media in _boxes(data, *track):
        if kind == b"mdia":
            for kind_in_media, (start, end) in _boxes(data, *media):
                if kind_in_media == b"hdlr" and end - start >= 12:
                    return data[start + 8 : start + 12] == b"vide"
    return False


def _track_rotation(data: bytes, track: tuple[int, int]) -> int:
    for kind, (start, end) in _boxes(data, *track):
        if kind == b"tkhd" and end - start >= 4:
            offset = _MATRIX_OFFSET.get(data[start], 0)
            if offset and start + offset + 8 <= end:
                across, down = struct.unpack_from(">ii", data, start + offset)
                return _QUARTER_TURNS.get((across // _ONE, down // _ONE), 0)
    return 0
