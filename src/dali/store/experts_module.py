"""An experts module of a model: how it lays out its parameters, and one expert of it in the one layout that is packed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dali.kernels.expert import ExpertShape, ExpertWeights


@dataclass(frozen=True)
class ExpertsModule:
    """How one experts module of a model lays out its parameters, as the seam tells."""

    name: str  # dotted path, e.g. model.layers.3.mlp.experts
    experts: int
    shape: ExpertShape
    transposed: bool  # parameters are [in, out]
    concatenated: bool  # gate and up are halves; else interleaved rows

    @property
    def parameter_names(self) -> list[str]:
        """The module's own parameters: gate and up (or up alone), down, then their biases if it has any."""
        names = ["gate_up_proj" if self.shape.gated else "up_proj", "down_proj"]
        return names + [f"{name}_bias" for name in names if self.shape.biased]

    def canonical(
        self,
        first: Tensor,
        down: Tensor,
        first_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
    ) -> ExpertWeights:
        """One expert's parameters, in the order of `parameter_names` and this layout, -> canonical weights.

        ValueError or RuntimeError when a shape does not fit.
        """
        if self.transposed:
            first, down = first.T, down.T
        if not self.shape.gated:
            weights = ExpertWeights(None, first, down, None, first_bias, down_bias)
        elif self.concatenated:
            gate, up = first.chunk(2)
            biases = (None, None) if first_bias is None else first_bias.chunk(2)
            weights = ExpertWeights(gate, up, down, biases[0], biases[1], down_bias)
        else:
            biases = (None, None) if first_bias is None else (first_bias[0::2], first_bias[1::2])
            weights = ExpertWeights(first[0::2], first[1::2], down, biases[0], biases[1], down_bias)
        expected: dict[str, tuple[int, ...]] = dict(self.shape.matrices)
        if self.shape.biased:
            expected |= {f"{name}_bias": shape[:1] for name, shape in expected.items()}
        for name, shape in expected.items():
            part = getattr(weights, name)
            if part.shape != shape or not part.is_floating_point():
                raise ValueError(f"{name} is {part.dtype} {list(part.shape)}, expected floats {list(shape)}")
        return weights
