"""GGUF blocks into packed matrices: without loss where a packed format has the same values, else through floats."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dali.errors import DaliError
from dali.kernels import native
from dali.kernels.formats import FORMATS, TILE_ROWS, Format, round_up
from dali.kernels.packing import pack, unpack
from dali.store.gguf.blocks import BlockType, Bytes, six_bit_scales

_FORMATS = {  # that have the values of a type, once they are there
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "Q8_0": "w8",
    "Q4_0": "w4",
    "MXFP4": "mxfp4",
    "Q4_K": "q4k",
    "Q4_1": "q4_1",
    "Q5_0": "q5_0",
    "Q5_1": "q5_1",
    "Q2_K": "q2k",
    "Q3_K": "q3k",
    "Q5_K": "q5k",
    "Q6_K": "q6k",
    "IQ4_NL": "iq4_nl",
    "IQ4_XS": "iq4_xs",
    "IQ3_S": "iq3_s",
    "IQ3_XXS": "iq3_xxs",
    "IQ2_S": "iq2_s",
    "IQ2_XS": "iq2_xs",
    "IQ2_XXS": "iq2_xxs",
    "IQ1_S": "iq1_s",
    "IQ1_M": "iq1_m",
    "NVFP4": "nvfp4",
    "TQ1_0": "tq2_0",
    "TQ2_0": "tq2_0",
}
SAME_VALUES = {type: format for type, format in _FORMATS.items() if format in FORMATS}
_FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.int16}
_LOW = np.uint32(0x0F0F0F0F)

Words = NDArray[np.uint32]


def own_format(type: BlockType) -> Format:
    """The packed format that holds `type`'s values without loss; `w8` for types that none does."""
    return FORMATS[SAME_VALUES.get(type.name, "w8")]


def keeps(type: BlockType, format: Format) -> bool:
    """Whether `format` has the values of `type`."""
    return SAME_VALUES.get(type.name) == format.name


def pack_blocks(raw: Bytes, type: BlockType, format: Format, out: Tensor) -> None:
    """Blocks [rows, row bytes] into `out`, uint8 [format.matrix_bytes(rows, columns)], zeros so far.

    DaliError for values that are not finite, or that `format` cannot hold.
    """
    if type.name not in _FLOATS and format == own_format(type) and native.enabled():
        columns = type.blocks(raw).shape[1] * type.columns
        if native.repack(torch.from_numpy(np.ascontiguousarray(raw)), type.name, columns, format, out):
            return  # else what follows says what is wrong
    if not keeps(type, format):
        out.copy_(pack(torch.from_numpy(type.values(raw)), format))
    elif type.name in _FLOATS:
        matrix = torch.from_numpy(raw.view(_FLOATS[type.name]))
        out.copy_(pack(matrix.view(torch.bfloat16) if type.name == "BF16" else matrix, format))
    else:
        _repack(raw, type, format, out.numpy())


def _repack(raw: Bytes, type: BlockType, format: Format, out: Bytes) -> None:
    rows = len(raw)
    padded = round_up(rows, TILE_ROWS)
    if padded != rows:
        raw = np.concatenate([raw, np.zeros((padded - rows, raw.shape[1]), dtype=np.uint8)])
    blocks = type.blocks(raw)
    columns = blocks.shape[1] * type.columns
    packed = out.reshape(padded // TILE_ROWS, format.tile_bytes(columns))
    plane = format.scale_plane_bytes(columns)
    scales, words = _PARTS[type.name](blocks)
    for scale in scales:
        if not np.isfinite(scale).all():
            raise DaliError("A scale is NaN or infinite.", "The model is damaged; download it again.")

    # [rows, blocks, values] -> [tiles, blocks, values, 16 rows], the scales of a block side by side.
    fields = [(f"f{i}", s.dtype, (s.shape[2], TILE_ROWS)) for i, s in enumerate(scales)]
    side_by_side: Any = packed[:, : blocks.shape[1] * np.dtype(fields).itemsize].view(np.dtype(fields))
    for (name, *_), scale in zip(fields, scales, strict=True):
        side_by_side[name][...] = _by_tile(scale)
    body = packed[:, plane:].view(np.uint32)
    body.reshape(len(packed), blocks.shape[1], -1, TILE_ROWS)[...] = _by_tile(words)


def _by_tile(rows: NDArray[Any]) -> NDArray[Any]:
    """[rows, blocks, values] -> [tiles, blocks, values, 16], a view."""
    return rows.reshape(-1, TILE_ROWS, *rows.shape[1:]).transpose(0, 2, 3, 1)


Parts = tuple[
    list[NDArray[Any]], Words
]  # scale parts [rows, blocks, values], words of quants [rows, blocks, n]


def _words(qs: NDArray[Any]) -> Words:
    """[rows, blocks, bytes] -> uint32 [rows, blocks, bytes / 4], a view."""
    return qs.view(np.uint32)


def _q8_0(blocks: NDArray[Any]) -> Parts:
    return [blocks["d"][..., None]], _words(blocks["qs"]) ^ np.uint32(0x80808080)  # zero point 128


def _q4_0(blocks: NDArray[Any]) -> Parts:
    return [blocks["d"][..., None]], _words(blocks["qs"])


def _mxfp4(blocks: NDArray[Any]) -> Parts:
    if (blocks["e"] == 255).any():
        raise DaliError("A scale is NaN.", "The model is damaged; download it again.")
    return [blocks["e"][..., None]], _words(blocks["qs"])


def _q4_k(blocks: NDArray[Any]) -> Parts:
    """32 bytes hold two groups, one in the low nibbles; a packed group keeps its column j + 16 in j's high nibble."""
    scale, minimum = six_bit_scales(blocks["scales"])
    qs = _words(blocks["qs"]).reshape(*blocks.shape, 4, 2, 4)
    near, far = qs[..., 0, :], qs[..., 1, :]  # columns 0 to 15 and 16 to 31 of both groups
    words = np.stack([(near & _LOW) | ((far & _LOW) << 4), ((near >> 4) & _LOW) | (far & ~_LOW)], axis=-2)
    parts = [blocks["d"][..., None], blocks["dmin"][..., None], scale, minimum]
    return parts, words.reshape(*blocks.shape, 32)


_PARTS = {"Q8_0": _q8_0, "Q4_0": _q4_0, "MXFP4": _mxfp4, "Q4_K": _q4_k}


def squared_error(raw: Bytes, type: BlockType, packed: Tensor, format: Format) -> tuple[float, float]:
    """What packing lost: the sums of squares of the differences, and of the values themselves."""
    values = torch.from_numpy(type.values(raw))
    return _squared(unpack(packed, *values.shape, format), values)


def _squared(kept: Tensor, values: Tensor) -> tuple[float, float]:
    lost = kept.double() - values.double()
    return float(lost.square().sum()), float(values.double().square().sum())


class Losses:
    """What conversions lost, by name ("Q6_K to w8"), summed up over all that was measured. Several threads may add to it."""

    def __init__(self) -> None:
        self._pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def packed(self, raw: Bytes, type: BlockType, packed: Tensor, format: Format) -> None:
        """Blocks were packed, in a format that may not have their values."""
        if not keeps(type, format):
            pair = squared_error(raw, type, packed, format)
            self._pairs[f"{type.name} to {format.name}"].append(pair)

    def kept(self, name: str, kept: Tensor, values: Tensor) -> None:
        """`kept` is what has become of `values`."""
        self._pairs[name].append(_squared(kept, values))

    def relative(self) -> dict[str, float]:
        """The relative L2 error of each that lost something."""
        sums = {name: np.sum(pairs, axis=0) for name, pairs in sorted(self._pairs.items())}
        return {name: float(np.sqrt(lost / whole)) for name, (lost, whole) in sums.items() if lost > 0}
