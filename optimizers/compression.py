"""What an artifact's weights would take when a standard compressor packs them.

Zeros alone make no file smaller: this is what pruning saves on the way to a disk or through a
network. Owns the sampling that bounds its time. Knows nothing of formats.
"""

from __future__ import annotations

import zlib
from pathlib import Path

_PIECE = 1 << 20  # bytes that are packed by themselves; the compressor looks back 32 KiB
_PIECES = 64  # of a file that are read, evenly spaced: a few seconds, however large it is
_LEVEL = 6


def compressed_bytes(path: Path) -> int:
    """Bytes of a file after zlib, level 6; one of more than 64 MiB is told from 64 pieces of it."""
    size = path.stat().st_size
    pieces = -(-size // _PIECE)
    count = min(pieces, _PIECES)
    read = packed = 0
    with path.open("rb") as file:
        for index in range(count):
            file.seek(index * pieces // count * _PIECE)
            piece = file.read(_PIECE)
            read += len(piece)
            packed += len(zlib.compress(piece, _LEVEL))
    return round(packed * size / read) if read else 0
