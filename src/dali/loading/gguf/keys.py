"""The metadata keys of a file's architecture, and what its tensors' shapes tell in their place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dali.store.gguf.header import Gguf, damaged

NUMBER = (int, float)
SOFTMAX, SIGMOID = 1, 2  # ggml's expert gating functions
Fields = dict[str, Any]


class Mamba(NamedTuple):
    """Sizes of layers with recurrent state, of whatever kind, as llama.cpp's `ssm` keys have them."""

    heads: int
    width: int  # of a head
    groups: int
    state: int
    taps: int  # of the convolution


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

    @property
    def layers(self) -> int:
        """How many decoder layers there are, without the blocks behind them that predict tokens beyond the next one."""
        blocks, ahead = self.required("block_count"), self.key("nextn_predict_layers", 0)
        if not ahead < blocks:
            raise damaged(
                self.gguf.path,
                f"its block_count is {blocks}, and {ahead} of them predict tokens beyond the next one",
            )
        return int(blocks - ahead)

    def per_layer(self, name: str, default: Any = None, kind: type | tuple[type, ...] = int) -> list[Any]:
        """A value for each decoder layer, which the file has as a row or once for all. DaliError for a row that is too short."""
        kinds = kind if isinstance(kind, tuple) else (kind,)
        found = self.gguf.get(f"{self.architecture}.{name}", (list, *kinds), default)
        values = found if isinstance(found, list) else [found] * self.layers
        if len(values) < self.layers or not all(type(value) in kinds for value in values):
            raise damaged(
                self.gguf.path,
                f"its key {self.architecture}.{name} is {values!r:.60}, for {self.layers} layers",
            )
        return [self._in_range(name, value) for value in values[: self.layers]]

    def largest(self, name: str) -> int | None:
        """The largest of the values that layers have; None where the file has none."""
        if name not in self:
            return None
        return int(max(self.per_layer(name)))

    def windows(self, period: int, *, full_first: bool = False) -> list[str]:
        """transformers' `layer_types`: which layers attend to a window, where the file has none one of each `period` does not."""
        wide = 0 if full_first else period - 1
        pattern = [layer % period != wide for layer in range(self.layers)]
        if "attention.sliding_window_pattern" in self:
            given = self.gguf.get(f"{self.architecture}.attention.sliding_window_pattern", (list, int))
            if isinstance(given, list):
                pattern = self.per_layer("attention.sliding_window_pattern", kind=(bool, int))
            elif given > 0:
                wide = 0 if full_first else given - 1
                pattern = [layer % given != wide for layer in range(self.layers)]
        return ["sliding_attention" if windowed else "full_attention" for windowed in pattern]

    def recurrent(self, period: int) -> list[str]:
        """transformers' `layer_types`: which layers keep a state, where the file does not say all but one of each `period`."""
        if "attention.recurrent_layers" in self:
            state = self.per_layer("attention.recurrent_layers", kind=(bool, int))
        else:
            period = self.key("full_attention_interval", period)
            if not 1 <= period <= self.layers:
                raise damaged(
                    self.gguf.path,
                    f"its key {self.architecture}.full_attention_interval is {period}, of {self.layers} layers",
                )
            state = [(layer + 1) % period != 0 for layer in range(self.layers)]
        return ["linear_attention" if keeps else "full_attention" for keeps in state]

    def mamba(self) -> Mamba:
        """Sizes of layers with recurrent state. DaliError where heads do not divide them."""
        heads, inner = self.required("ssm.time_step_rank"), self.required("ssm.inner_size")
        groups = self.required("ssm.group_count")
        for count, name in ((heads, "time_step_rank"), (groups, "group_count")):
            if count < 1 or inner % count or heads % count:
                raise damaged(
                    self.gguf.path,
                    f"its key {self.architecture}.ssm.{name} is {count}, of {heads} heads and an inner size of {inner}",
                )
        state, taps = self.required("ssm.state_size"), self.required("ssm.conv_kernel")
        return Mamba(heads, inner // heads, groups, state, taps)

    def per_head(self) -> int:
        """The size of a head where the file does not say: heads share the hidden size."""
        heads, hidden = self.largest("attention.head_count") or 0, self.required("embedding_length")
        if heads < 1 or hidden % heads:
            raise damaged(
                self.gguf.path, f"its {heads} attention heads do not divide its embedding_length {hidden}"
            )
        return int(hidden // heads)

    def rotary(self, head: int, name: str = "rope.dimension_count") -> float:
        """Which part of a head of that size is rotated."""
        count = self.key(name, head)
        if not 0 < count <= head:
            raise damaged(
                self.gguf.path, f"its key {self.architecture}.{name} is {count}, of heads of {head}"
            )
        return count / head  # type: ignore[no-any-return]

    def __contains__(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self.gguf.metadata

    def kinds(self, leading: str = "leading_dense_block_count") -> list[str]:
        """transformers' `mlp_layer_types`: dense ones first."""
        dense = self.key(leading, 0)
        return ["dense" if layer < dense else "sparse" for layer in range(self.layers)]

    def _in_range(self, name: str, value: Any) -> Any:
        """`value`; DaliError for a whole number that no size can be, which torch would only call an overflow."""
        if isinstance(value, int) and not 0 <= value < 2**32:
            raise damaged(
                self.gguf.path, f"its key {self.architecture}.{name} is {value}, which it cannot be"
            )
        return value

    def shape(self, tensor: str, suffix: str = "weight") -> tuple[int, ...] | None:
        """The shape of the first tensor of that name (a pattern), in any block; None where there is none."""
        pattern = re.compile(rf"blk\.\d+\.{tensor}\.{suffix}")
        return next((t.shape for name, t in self.gguf.tensors.items() if pattern.fullmatch(name)), None)

    @property
    def epsilon(self) -> float:
        """What norms add to the mean of squares."""
        mean_too = "attention.layer_norm_epsilon" in self and "attention.layer_norm_rms_epsilon" not in self
        return float(self.required(f"attention.layer_norm_{'' if mean_too else 'rms_'}epsilon", NUMBER))

    def top_shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of a tensor outside of blocks; None where there is none."""
        found = self.gguf.tensors.get(f"{tensor}.weight")
        return None if found is None else found.shape

    def expert_width(self) -> int:
        """The intermediate size of the experts."""
        shape = self.shape(r"ffn_down(_exps|\.0)")
        if shape is None:
            raise damaged(self.gguf.path, "it lacks the tensors of experts")
        return shape[-1]

    def grouped_routing(self) -> Fields:
        """How DeepSeek's router, and those made after it, choose: among the best groups of experts, weighted by a factor."""
        return {
            "n_group": self.key("expert_group_count", 1),
            "topk_group": self.key("expert_group_used_count", 1),
            "routed_scaling_factor": float(self.key("expert_weights_scale", 1.0, NUMBER)),
        }

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

    def rope_by_kind(self) -> Fields:
        """transformers' `rope_parameters` of layers that attend to everything, and of those that attend to a window, which are
        never scaled."""
        rope = self.rope()
        base = float(self.key("rope.freq_base_swa", rope["rope_theta"], NUMBER))
        return {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": base},
        }

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
