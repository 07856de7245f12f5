"""Whether all scales of blocks are numbers; of floats, whether the values are."""

from __future__ import annotations

import numpy as np

from dali.store.gguf.values.coded import iq1_m_scale
from dali.store.gguf.values.fields import Blocks


def floats(b: Blocks) -> bool:
    return bool(np.isfinite(b).all())


def bf16(b: Blocks) -> bool:
    return bool((b & np.uint16(0x7F80) != 0x7F80).all())  # the exponent is not all ones


def halves(b: Blocks) -> bool:
    """For all types whose scales and minima are their fields of type float16."""
    names = b.dtype.names or ()
    return all(floats(b[name]) for name in names if b.dtype[name] == np.float16)


def e8m0(b: Blocks) -> bool:
    return bool((b["e"] != 255).all())


def ue4m3(b: Blocks) -> bool:
    return bool((b["d"] & np.uint8(0x7F) != 0x7F).all())


def iq1_m(b: Blocks) -> bool:
    return floats(iq1_m_scale(b))
