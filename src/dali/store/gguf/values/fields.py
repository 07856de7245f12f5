"""The fields of blocks: bits out of bytes, and integers times their scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Blocks = NDArray[Any]  # structured, one element a block


def halves(qs: Bytes) -> Bytes:
    """[..., n] bytes -> [..., 2n]: all low nibbles, then all high ones."""
    return np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=-1)


def fields(packed: Bytes, bits: int) -> Bytes:
    """[..., n] bytes -> [..., 8 / bits, n]: the lowest `bits` of each byte, then the next ones of each."""
    shifts: Any = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    each: Bytes = (packed[..., None, :] >> shifts) & np.uint8(2**bits - 1)
    return each


def in_turn(packed: Bytes, bits: int) -> Bytes:
    """[..., n] bytes -> [..., n * 8 / bits]: all fields of `bits` of a byte, the lowest first, then the next byte's."""
    shifts: Any = np.arange(0, 8, bits, dtype=np.uint8)
    each: Bytes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return each.reshape(*packed.shape[:-1], -1)


def times(values: Any, scale: Any) -> Floats:
    """Integers [..., n] times their scale [...]."""
    out: Floats = values.astype(np.float32)
    out *= scale.astype(np.float32)[..., None]
    return out


def single(blocks: Blocks, name: str = "d") -> Floats:
    """A field of halves -> float32 [n, 1], to multiply a block's scales with."""
    out: Floats = blocks[name].astype(np.float32)[:, None]
    return out
