"""The metadata keys of a file's architecture, and what its tensors' shapes tell in their place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from dali.store.gguf.header import Gguf, damaged

NUMBER = (int, float)
Fields = dict[str, Any]


@dataclass(frozen=True)
class Keys:
    """A GGUF header, read by the names of its architecture's keys. Older files lack some, so widths and counts that tensors show
    are read off the tensors."""

    gguf: Gguf
    architecture: str

    def key(self, name: str, default: Any = None, kind: type | tuple[type, ...] = int) -> Any:
        return self._in_range(name, self.gguf.get(f"{self.architecture}.{name}", kind, default))

    def required(self, name: str, kind: type | tuple[type, ...] = int) -> Any:
        return self._in_range(name, self.gguf.require(f"{self.architecture}.{name}", kind))

    def _in_range(self, name: str, value: Any) -> Any:
        """`value`; DaliError for a whole number that no size can be, which torch would only call an overflow."""
        if isinstance(value, int) and not 0 <= value < 2**32:
            raise damaged(
                self.gguf.path, f"its key {self.architecture}.{name} is {value}, which it cannot be"
            )
        return value

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of the first tensor of that name (a pattern), in any block; None where there is none."""
        pattern = re.compile(rf"blk\.\d+\.{tensor}\.weight")
        return next((t.shape for name, t in self.gguf.tensors.items() if pattern.fullmatch(name)), None)

    def expert_width(self) -> int:
        """The intermediate size of the experts."""
        shape = self.shape(r"ffn_down(_exps|\.0)")
        if shape is None:
            raise damaged(self.gguf.path, "it lacks the tensors of experts")
        return shape[-1]

    def has(self, tensor: str) -> bool:
        return tensor in self.gguf.tensors

    def rope(self, **yarn: Any) -> Fields:
        """transformers' `rope_parameters`; `yarn`: what a family adds to YaRN's."""
        rope: Fields = {
            "rope_type": "default",
            "rope_theta": float(self.key("rope.freq_base", 10000.0, NUMBER)),
        }
        # llama.cpp's defaults: a factor alone is linear, by its older name too, and 0 stands for none.
        kind = self.key("rope.scaling.type", "linear", str)
        factor = (
            self.key("rope.scaling.factor", None, NUMBER) or self.key("rope.scale_linear", 0, NUMBER) or 1
        )
        if kind not in ("none", "linear", "yarn", "longrope"):
            raise damaged(self.gguf.path, f"its rope.scaling.type is {kind!r:.60}, which dali does not know")
        if factor < 0:
            raise damaged(self.gguf.path, f"its rope.scaling.factor is {factor}")
        if kind in ("none", "longrope") or factor == 1:
            return rope
        rope |= {"rope_type": kind, "factor": float(factor)}
        if kind == "yarn":
            original = self.key("rope.scaling.original_context_length") or self.required("context_length")
            rope["original_max_position_embeddings"] = original
            for ours, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
                value = self.key(f"rope.scaling.{key}", None, NUMBER)
                rope |= {} if value is None else {ours: float(value)}
            rope |= yarn
        return rope

    def rope_factors(self, name: str) -> list[float]:
        """What each frequency is divided by: a small F32 tensor."""
        tensor = self.gguf.tensors.get(name)
        if tensor is None or len(tensor.shape) != 1 or tensor.type.name != "F32":
            raise damaged(self.gguf.path, f"it lacks the tensor {name}, a row of F32")
        count = self.required("rope.dimension_count") // 2
        if tensor.shape[0] != count:
            raise damaged(
                tensor.path, f"the tensor {name} has {tensor.shape[0]} values, for {count} frequencies"
            )
        factors = np.fromfile(tensor.path, "<f4", count, offset=tensor.offset)
        if not (np.isfinite(factors) & (factors > 0)).all():
            raise damaged(tensor.path, f"the tensor {name} has values that are not positive")
        return [float(factor) for factor in factors]
