"""How far a header reaches, told while the file comes in pieces."""

from __future__ import annotations

import struct

import pytest

from dali.store.gguf.extent import header_extent
from gguf_bytes import ARRAY, STRING, U32, gguf, key, tensor, text

HEADER = gguf(
    (
        key("general.architecture", STRING, "none"),
        key("numbers", ARRAY, (U32, 3, struct.pack("<3I", 1, 2, 3))),
        key("tokens", ARRAY, (STRING, 300, b"".join(text(f"token {i}") for i in range(300)))),
        key("nested", ARRAY, (ARRAY, 1, struct.pack("<IQ", U32, 1) + struct.pack("<I", 7))),
    ),
    (tensor("blk.0.some.weight", (4, 32)), tensor("other", (2,), offset=512)),
    alignment=1,
)


def extent(content: bytes, piece: int) -> tuple[int, int]:
    """What is told, and how much was read for it, in multiples of `piece`."""
    there = 0

    def read(wanted: int) -> bytes:
        nonlocal there
        there = max(there, min(-(-wanted // piece) * piece, len(content)))
        return content[:there]

    return header_extent(read, len(content)), there


@pytest.mark.parametrize("piece", [24, 1000, 10**6])
def test_a_header_is_read_and_little_more(piece):
    content = HEADER + b"\0" * 10**5
    length, read = extent(content, piece)
    assert length == len(HEADER)
    assert read <= len(HEADER) + 2**12 + piece


@pytest.mark.parametrize(
    "content",
    [
        b"GGML" + HEADER[4:],
        HEADER[:100],
        HEADER[:8] + struct.pack("<Q", 2**60) + HEADER[16:],
        b"GG",
        HEADER[:40] + b"\xff" * 60,
    ],
)
def test_what_is_no_header_is_left_to_its_reader(content):
    length, read = extent(content, 50)
    assert length <= len(content)
    assert read <= len(content)
