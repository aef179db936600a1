"""A colour profile, made of its numbers."""

from __future__ import annotations

import struct
from collections.abc import Sequence

D50 = (0.9642, 1.0, 0.8249)
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
"""Red, green and blue of Adobe RGB (1998), XYZ relative to D50."""


def rgb_profile(primaries: Sequence[Sequence[float]] = ADOBE_RGB, gamma: float = 563 / 256) -> bytes:
    """An ICC profile (version 2) of an RGB space with one gamma."""
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
        b"wtpt": _xyz(D50),
    }
    for name, colour in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags[name + b"XYZ"] = _xyz(colour)
        tags[name + b"TRC"] = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    table, data, begin = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", begin + len(data), len(padded))
        data += padded
    body = struct.pack(">I", len(tags)) + table + data
    kinds = struct.pack(">I4sI4s4s4s", 128 + len(body), b"test", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head = kinds + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(D50)[8:]
    return head + bytes(128 - len(head)) + body


def _xyz(colour: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in colour)
