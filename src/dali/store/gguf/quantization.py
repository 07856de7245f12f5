"""What people call the quantization of a GGUF file: Q4_K_M, IQ2_XXS, UD-Q2_K_XL.

Such a name stands for a mixture of types, and only its maker knows it: llama.cpp's are numbers in `general.file_type`, others
stand in the file's name alone, above the number of what they were made from.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that the header's errors may say what a file is called
    from dali.store.gguf.header import Gguf

FILE_TYPES = {  # llama_ftype of llama.h
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
}  # fmt: skip
_GUESSED = 1024  # a bit of the number: what wrote the file did not know
_FLOATS = {"F32", "F16", "BF16"}
_IN_A_NAME = re.compile(
    r"(^|[-._])(?P<quantization>(UD-)?(I?Q[1-8]_[A-Z0-9_]+|TQ[12]_0|MXFP4(_MOE)?|NVFP4|B?F16|F32))(?![A-Z0-9])",
    re.IGNORECASE,
)


def bytes_by_type(model: Gguf) -> dict[str, int]:
    """How many bytes of its tensors are of each block type, the most first."""
    held: Counter[str] = Counter()
    for tensor in model.tensors.values():
        held[tensor.type.name] += tensor.nbytes
    return dict(held.most_common())


def quantization_in(name: str) -> str | None:
    """The last quantization that a file's name has, None: it has none."""
    found = [match["quantization"] for match in _IN_A_NAME.finditer(name)]
    return found[-1].upper() if found else None


def quantization(model: Gguf) -> str:
    """What the file's name says; else what its metadata say, unless its tensors show otherwise; else the type of most bytes."""
    if named := quantization_in(model.path.name):
        return named
    most = next(iter(bytes_by_type(model)), "F32")
    number = model.metadata.get("general.file_type")
    said = FILE_TYPES.get(number & ~_GUESSED) if type(number) is int else None
    # Converters that keep quantized experts as they are have been known to say F16.
    return said if said and (said in _FLOATS) == (most in _FLOATS) else most
