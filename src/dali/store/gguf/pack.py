"""GGUF blocks into packed matrices: without loss where a packed format has the same values, else through floats."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from dali.errors import DaliError
from dali.kernels import native
from dali.kernels.formats import FORMATS, TILE_ROWS, Format, assemble
from dali.kernels.packing import pack, unpack
from dali.store.gguf.blocks import SAME_VALUES, BlockType
from dali.store.gguf.parts import PARTS, parts_of
from dali.store.gguf.values.fields import Bytes

_FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.int16}


def own_format(type: BlockType) -> Format:
    """The packed format that holds `type`'s values without loss."""
    return FORMATS[SAME_VALUES[type.name]]


def keeps(type: BlockType, format: Format) -> bool:
    """Whether `format` has the values of `type`."""
    return own_format(type) == format


def pack_blocks(raw: Bytes, type: BlockType, format: Format, out: Tensor) -> None:
    """Blocks [rows, row bytes] into `out`, uint8 [format.matrix_bytes(rows, columns)], zeros so far.

    DaliError for values that are not finite, or that `format` cannot hold.
    """
    if type.name in PARTS and keeps(type, format) and native.enabled():
        columns = type.blocks(raw).shape[1] * type.columns
        if native.repack(torch.from_numpy(np.ascontiguousarray(raw)), type.name, columns, format, out):
            return  # else what follows says what is wrong
    if type.name not in _FLOATS and not type.finite(raw):
        raise DaliError(
            f"A scale of {type.name} is NaN or infinite.", "The model is damaged; download it again."
        )
    if not keeps(type, format):
        out.copy_(pack(torch.from_numpy(type.values(raw)), format))
    elif type.name in _FLOATS:
        matrix = torch.from_numpy(raw.view(_FLOATS[type.name]))
        out.copy_(pack(matrix.view(torch.bfloat16) if type.name == "BF16" else matrix, format))
    else:
        _repack(raw, type, format, out)


def _repack(raw: Bytes, type: BlockType, format: Format, out: Tensor) -> None:
    padding = np.zeros((-len(raw) % TILE_ROWS, raw.shape[1]), dtype=np.uint8)
    quants, scales = parts_of(type.blocks(np.concatenate([raw, padding])), type.name)
    out.copy_(assemble(torch.unflatten(quants, 1, (-1, format.group_width)), scales, format))


def squared_error(raw: Bytes, type: BlockType, packed: Tensor, format: Format) -> tuple[float, float]:
    """What packing lost: the sums of squares of the differences, and of the values themselves."""
    values = torch.from_numpy(type.values(raw))
    rows, columns = values.shape
    return _squared(unpack(packed, rows, columns, format), values)


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
