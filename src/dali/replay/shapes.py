"""Sizes that a replay gives a recorded routing: the recorded model's own, or another model's.

Expert sizes are packed w4, as the paper's models are about 4-bit. The dense part of a MoE layer is everything else but the
embeddings, spread evenly over the MoE layers, in bfloat16; a kernel a linear or norm. Figures follow from each model's
config.json; the sums behind them stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dali.errors import DaliError, UsageError, parameter
from dali.hardware.cost import CostModel, ExpertSize
from dali.hardware.profile import Profile
from dali.replay.traces.trace import Trace

OWN = "own"


@dataclass(frozen=True)
class Shape:
    """One expert, and a MoE layer's dense part. `expert_bytes` packed in `format`."""

    hidden: int
    intermediate: int
    matrices: int
    format: str
    expert_bytes: int
    dense_parameters: int
    dense_bytes: int
    dense_kernels: int

    def costs(self, profile: Profile, most_tokens: int, accelerator: bool = True) -> CostModel:
        size = ExpertSize(self.hidden, self.intermediate, self.matrices, {self.format: self.expert_bytes})
        return CostModel(profile, size, self.format, most_tokens, accelerator)

    def as_meta(self) -> dict[str, Any]:
        """What a trace keeps of it."""
        return asdict(self)


def _published(hidden: int, intermediate: int, dense_parameters: int, dense_kernels: int) -> Shape:
    w4 = 3 * hidden * intermediate * 18 // 32  # groups of 32 four-bit weights and a two-byte scale
    return Shape(hidden, intermediate, 3, "w4", w4, dense_parameters, 2 * dense_parameters, dense_kernels)


# attention + router (+ shared experts) + output head / MoE layers
SHAPES: Mapping[str, Shape] = {
    # q, o: 2 x 2048 x 4096; k, v: 2 x 2048 x 512; head 151936 x 2048 / 48
    "qwen3-30b-a3b": _published(2048, 768, 18_874_368 + 128 * 2048 + 6_482_603, 9),
    # q, o: 2 x 4096 x 4096; k, v: 2 x 4096 x 1024; head 32000 x 4096 / 32
    "mixtral-8x7b": _published(4096, 14336, 41_943_040 + 8 * 4096 + 4_096_000, 7),
    # q 2048 x 3072, kv_a 2048 x 576, kv_b 512 x 4096, o 2048 x 2048; shared 3 x 2048 x 2816; (head 102400 x 2048
    # + the dense first layer, 13.8 M of attention and 3 x 2048 x 10944) / 26
    "deepseek-v2-lite": _published(2048, 1408, 13_762_560 + 64 * 2048 + 17_301_504 + 11_181_686, 11),
    # q, o: 2 x 2880 x 4096; k, v: 2 x 2880 x 512; head 201088 x 2880 / 24
    "gpt-oss-20b": _published(2880, 2880, 26_542_080 + 32 * 2880 + 24_130_560, 7),
    # q, k, v, o: 4 x 2048 x 2048; head 50304 x 2048 / 16
    "olmoe-1b-7b": _published(2048, 1024, 16_777_216 + 64 * 2048 + 6_438_912, 9),
}


def check(name: str) -> str:
    """The name of a shape. UsageError: nothing is called so."""
    if name != OWN and name not in SHAPES:
        raise UsageError(f"There is no shape {name!r}.", f"Use one of {', '.join([OWN, *SHAPES])}.")
    return name


def shape_of(trace: Trace, name: str) -> Shape:
    """The shape called `name`; "own": what the trace says of its model, or is known of a model of that name.

    UsageError: neither says it. DaliError: the trace says nonsense.
    """
    if check(name) != OWN:
        return SHAPES[name]
    said = trace.meta.get("shape")
    if said is None:
        model = str(trace.meta["model"]).lower().rpartition("/")[2]
        for known, shape in SHAPES.items():
            if model.startswith(known):
                return shape
        raise UsageError(
            f"The trace {trace.name} does not say the sizes of its model, {trace.meta['model']}.",
            f"Give it those of another one: {parameter('shape')} {'|'.join(SHAPES)}.",
        )
    fields = Shape.__dataclass_fields__
    if (
        not isinstance(said, dict)
        or set(said) != set(fields)
        or not all(type(value) is int and value > 0 for key, value in said.items() if key != "format")
    ):
        raise DaliError(
            f"The shape in the trace {trace.name} is malformed: {said!r}.",
            "Record it again with `dali trace`.",
        )
    return Shape(**said)
