"""How many bytes the header of a GGUF file takes, of which the rest is not here: what it says is left to header.py."""

from __future__ import annotations

import struct
from collections.abc import Callable

from dali.store.gguf.header import ARRAY, MAGIC, MOST_DIMENSIONS, READERS, SCALARS, STRING

_COUNT, _KIND = struct.Struct("<Q"), struct.Struct("<I")
_ARRAY = struct.Struct("<IQ")
AHEAD = 2**12  # bytes asked for at once


def header_extent(read: Callable[[int], bytes | bytearray], total: int) -> int:
    """Bytes of keys and tensors, all `total` for what is no header. `read`: at least so many bytes from the file's beginning, or
    all there are."""
    walk = _Walk(read, total)
    try:
        return walk.extent()
    except _NoHeader:
        return min(total, len(walk.data))


class _NoHeader(Exception):
    """It is damaged, which whoever reads it says better."""


class _Walk:
    """A position in what was read so far, which grows as it is asked for."""

    def __init__(self, read: Callable[[int], bytes | bytearray], total: int) -> None:
        self._read, self._total = read, total
        self.data = read(min(24, total))
        self.at = 0

    def _need(self, nbytes: int) -> int:
        """The position of the next so many bytes, which are there."""
        begin, self.at = self.at, self.at + nbytes
        if self.at > self._total:
            raise _NoHeader
        if self.at > len(self.data):
            self.data = self._read(min(self.at + AHEAD, self._total))
        return begin

    def _take(self, form: struct.Struct) -> tuple[int, ...]:
        begin = self._need(form.size)
        return form.unpack_from(self.data, begin)

    def _text(self) -> None:
        (length,) = self._take(_COUNT)
        self._need(length)

    def _texts(self, count: int) -> None:
        """So many texts, of which a vocabulary has hundreds of thousands."""
        length, at, have = _COUNT.unpack_from, self.at, len(self.data)
        for _ in range(count):
            if at + 8 > have:
                self.at = at
                self._need(8)
                have = len(self.data)
            at += 8 + length(self.data, at)[0]
        self.at = at
        self._need(0)

    def extent(self) -> int:
        if bytes(self.data[:4]) != MAGIC:
            raise _NoHeader
        self._need(8)
        (tensors,), (keys,) = self._take(_COUNT), self._take(_COUNT)
        if keys * 13 + tensors * 32 > self._total:
            raise _NoHeader
        for _ in range(keys):
            self._text()
            (kind,) = self._take(_KIND)
            self._value(kind)
        for _ in range(tensors):
            self._text()
            (dimensions,) = self._take(_KIND)
            if dimensions > MOST_DIMENSIONS:
                raise _NoHeader
            self._need(8 * dimensions + 12)
        return self.at

    def _value(self, kind: int, depth: int = 0) -> None:
        if kind == STRING:
            self._text()
        elif kind in SCALARS:
            self._need(READERS[SCALARS[kind]].size)
        elif kind == ARRAY and depth < 4:
            kind, count = self._take(_ARRAY)
            if kind in SCALARS:
                self._need(count * READERS[SCALARS[kind]].size)
                return
            if kind not in (STRING, ARRAY):
                raise _NoHeader
            if kind == STRING:
                self._texts(count)
            for _ in range(count if kind == ARRAY else 0):
                self._value(kind, depth + 1)
        else:
            raise _NoHeader
