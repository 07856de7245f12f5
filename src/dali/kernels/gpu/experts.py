"""What the GPU's expert kernels are compiled for: one of a model's layouts."""

from __future__ import annotations

from dali.errors import DaliError
from dali.kernels.activation import KINDS
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import FORMATS

PASSES = (1, 2)  # for few tokens an expert and for many: blocks of 8 that share one reading of the weights


def experts_macros(layout: ExpertLayout, passes: int) -> dict[str, int]:
    """The macros that source/experts.cuh wants. DaliError for gate and up that the kernels cannot read side by side."""
    shape, formats = layout.shape, layout.formats
    gate = formats.get("gate", formats["up"])
    if gate.quantized != formats["up"].quantized:
        raise DaliError(
            f"The GPU's kernels cannot compute experts whose gate is {gate.name} and whose up is {formats['up'].name}.",
            "Run this model on the CPU alone, or as another file.",
        )
    numbers = {name: index for index, name in enumerate(FORMATS)}
    return {
        "GATE": numbers[gate.name],
        "UP": numbers[formats["up"].name],
        "DOWN": numbers[formats["down"].name],
        "ACTIVATION": KINDS.index(shape.activation.kind),
        "GATED": int(shape.gated),
        "BIASED": int(shape.biased),
        "PASSES": passes,
    }
