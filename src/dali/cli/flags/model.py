"""How the MODEL that a verb takes is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dali.cli.flags.kinds import FACTOR, FILE, SIZE, one_of, whole
from dali.cli.flags.option import SWITCH, flag
from dali.options import CACHE_TYPES, DTYPES, QUANTS, ROPE_SCALINGS, LoadOptions

# What others call a format of QUANTS.
NEAR = {
    **dict.fromkeys(("q8", "q8_0", "int8", "8bit", "8", "fp8", "w8a8"), "w8"),
    **dict.fromkeys(("q4", "q4_0", "int4", "4bit", "4", "nf4", "w4a16"), "w4"),
    **dict.fromkeys(("q4_k", "q4_k_m", "q4_k_s"), "q4k"),
    **dict.fromkeys(("q6", "q6_k"), "q6k"),
    **dict.fromkeys(("original", "own", "none", "as-is"), "keep"),
    **dict.fromkeys(("fp16", "float16", "half"), "f16"),
    **dict.fromkeys(("fp32", "float32"), "f32"),
    **dict.fromkeys(("bfloat16",), "bf16"),
    **dict.fromkeys(("fp4", "mxfp"), "mxfp4"),
}
# And what a type of CACHE_TYPES.
NEAR_CACHE = {
    **dict.fromkeys(("w8", "int8", "8bit", "8", "fp8", "fp8_e5m2", "fp8_e4m3"), "q8"),
    **dict.fromkeys(("f16", "fp16", "float16", "bf16", "bfloat16", "f32", "float32", "none"), "model"),
}


@dataclass(frozen=True)
class Model:
    """None leaves a choice to LoadOptions."""

    model: str | None = flag("model", FILE, "the model where no MODEL is given", is_word=True)
    ctx_size: int | None = flag(
        "model",
        whole(2, 0, "all the model can"),
        "tokens a conversation may have (default, and 0: all the model can)",
        "-c",
    )
    rope_scaling: str | None = flag(
        "model",
        one_of(ROPE_SCALINGS),
        "stretch the context by linear or yarn scaling (default: as the model says)",
    )
    rope_scale: float | None = flag("model", FACTOR, "how many times more tokens than in training")
    yarn_orig_ctx: int | None = flag(
        "model",
        whole(1, 0, "as the model says"),
        "tokens in training, for yarn (default, and 0: as the model says)",
    )
    quant: str | None = flag(
        "model",
        one_of(QUANTS, near=NEAR),
        f"format of the experts in memory: {', '.join(QUANTS)} (default: auto)",
    )
    dtype: str | None = flag(
        "model", one_of(DTYPES), f"of everything but the experts: {', '.join(DTYPES)} (default: auto)"
    )
    cache_type: str | None = flag(
        "model",
        one_of(CACHE_TYPES, near=NEAR_CACHE),
        "what keys and values are kept in: model (its own type) or q8 (8 bits; half of bfloat16's memory) (default: model)",
    )
    ram: int | None = flag("model", SIZE, "host memory to plan with (default: what is free)")
    threads: int | None = flag("model", whole(1), "CPU threads (default: all cores)", "-t")
    offline: bool = flag("model", SWITCH, "never touch the network")

    def load_options(self) -> LoadOptions:
        """What the flags ask for. UsageError: it cannot be meant."""
        given = self._parameters()
        return LoadOptions(**{name: value for name, value in given.items() if value is not None})

    def _parameters(self) -> dict[str, Any]:
        return {
            "ctx_size": self.ctx_size,
            "rope_scaling": self.rope_scaling,
            "rope_scale": self.rope_scale,
            "yarn_orig_ctx": self.yarn_orig_ctx,
            "quant": self.quant,
            "dtype": self.dtype,
            "cache_type": self.cache_type,
            "ram": self.ram,
            "threads": self.threads,
            "offline": self.offline,
        }
