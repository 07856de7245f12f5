"""Values of types whose 4 bits a weight are a place in a table of 16."""

from __future__ import annotations

from typing import Any

import numpy as np

from dali.kernels.grids import CODES, table
from dali.store.gguf.values.fields import Blocks, Bytes, Floats, halves, in_turn, single, times

_FP4 = np.array(CODES, dtype=np.int8)  # doubled, so that they are integers


def mxfp4(b: Blocks) -> Floats:
    power = np.ldexp(np.float32(1), b["e"].astype(np.int32) - 128)  # half of 2^(e - 127)
    return times(_FP4[halves(b["qs"])], power)


def nvfp4(b: Blocks) -> Floats:
    """64 columns, of which 16 at a time share a scale of 8 bits."""
    return times(_FP4[halves(b["qs"].reshape(-1, 4, 8))], _UE4M3[b["d"]])


def iq4_nl(b: Blocks) -> Floats:
    return times(table("iq4")[halves(b["qs"])], b["d"])


def iq4_xs(b: Blocks) -> Floats:
    codes = halves(b["qs"].reshape(-1, 8, 16))
    return times(table("iq4")[codes], single(b) * iq4_xs_scales(b["scales_l"], b["scales_h"]))


def iq4_xs_scales(low: Bytes, high: Any) -> Any:
    """Nibbles [n, 4] and the upper 2 bits of all, uint16 [n] -> int8 [n, 8] from -32 to 31."""
    upper = (high[:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & np.uint16(3)).astype(np.uint8)
    return (in_turn(low, 4) | upper << np.uint8(4)).view(np.int8) - np.int8(32)


def _ue4m3() -> Floats:
    """Half of the float of each byte: 4 bits of exponent, 3 of mantissa. As ggml has it the topmost is not read, and NaN is 0."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, (codes & 7).astype(np.float32)
    normal = np.ldexp(1 + mantissa / 8, exponent - 8)
    halved: Floats = np.where(exponent == 0, np.ldexp(mantissa, -10), normal).astype(np.float32)
    halved[0x7F] = 0
    return halved


_UE4M3 = _ue4m3()
