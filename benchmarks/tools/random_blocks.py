"""Random blocks of GGUF's quantized types, for measuring speed: every byte random but the scales, which make the values finite,
near zero on average and about 0.02 large, as weights are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Block:
    """A type's block: its size, where its f16 scale `d` lies and what that is here, and a minimum or an offset of `factor` * d
    right after it. Where d is no f16: the first `scales` bytes are one-byte scales, drawn from `between`."""

    columns: int
    bytes: int
    at: int = 0
    d: float = 0.0
    factor: float = 0.0
    scales: int = 0
    between: tuple[int, int] = (0, 0)


BLOCKS = {
    "Q8_0": Block(32, 34, d=2.7e-4),
    "Q6_K": Block(256, 210, at=208, d=1.5e-5),
    "Q5_K": Block(256, 176, d=3.8e-5, factor=15.5),
    "Q5_1": Block(32, 24, d=2.2e-3, factor=-15.5),
    "Q5_0": Block(32, 22, d=2.2e-3),
    "Q4_K": Block(256, 144, d=7.7e-5, factor=7.5),
    "Q4_1": Block(32, 20, d=4.3e-3, factor=-7.5),
    "Q4_0": Block(32, 18, d=4.3e-3),
    "IQ4_NL": Block(32, 18, d=2.8e-4),
    "IQ4_XS": Block(256, 136, d=1.5e-5),
    "MXFP4": Block(32, 17, scales=1, between=(119, 121)),
    "NVFP4": Block(64, 36, scales=4, between=(1, 8)),
    "Q3_K": Block(256, 110, at=108, d=4.6e-4),
    "IQ3_S": Block(256, 110, d=1.2e-4),
    "IQ3_XXS": Block(256, 98, d=1.4e-4),
    "Q2_K": Block(256, 84, at=80, d=1.4e-3, factor=1.5),
    "IQ2_S": Block(256, 82, d=3.7e-4),
    "IQ2_XS": Block(256, 74, d=3.7e-4),
    "IQ2_XXS": Block(256, 66, d=3.7e-4),
    "IQ1_M": Block(256, 56, at=48, d=2.5e-3),
    "IQ1_S": Block(256, 50, d=2.5e-3),
    "TQ2_0": Block(256, 66, at=64, d=0.02),
    "TQ1_0": Block(256, 54, at=52, d=0.02),
}


def random_blocks(type: str, rows: int, columns: int, generator: np.random.Generator) -> Bytes:
    """uint8 [rows, bytes a row]; columns must be a multiple of the block's."""
    block = BLOCKS[type]
    count = rows * columns // block.columns
    raw = generator.integers(0, 256, (count, block.bytes), dtype=np.uint8)
    if block.scales:
        raw[:, : block.scales] = generator.integers(*block.between, (count, block.scales), dtype=np.uint8)
    elif type == "IQ1_M":  # the scale's four nibbles are the highest of four words
        words = raw[:, block.at :].view("<u2")
        nibbles = int(np.float16(block.d).view(np.uint16)) >> np.arange(0, 16, 4) & 15
        words[:] = (words & 0x0FFF) | (nibbles << 12).astype(np.uint16)
    else:
        scales = np.array([block.d, block.d * block.factor][: 2 if block.factor else 1], dtype="<f2")
        raw[:, block.at : block.at + scales.nbytes] = scales.view(np.uint8)
    return raw.reshape(rows, -1)
