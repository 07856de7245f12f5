"""GGUF files byte by byte, so that tests can write what no writer would."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
CODES = {U8: "<B", U32: "<I", F32: "<f", BOOL: "<?", U64: "<Q"}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: Any) -> bytes:
    """A key and its value; an array is (element type, count, bytes)."""
    if kind == ARRAY:
        element, count, raw = value
        payload = struct.pack("<IQ", element, count) + raw
    else:
        payload = text(value) if kind == STRING else struct.pack(CODES[kind], value)
    return text(name) + struct.pack("<I", kind) + payload


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(shape))
        + b"".join(struct.pack("<Q", size) for size in reversed(shape))
        + struct.pack("<IQ", kind, offset)
    )


def gguf(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file; `counts`: what it claims of tensors and keys, None for the truth."""
    counts = counts or (len(tensors), len(keys))
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys + tensors)
    return header + b"\0" * (-len(header) % alignment) + data


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
