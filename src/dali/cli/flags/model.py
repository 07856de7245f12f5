"""How the MODEL that a verb takes is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dali.cli.flags.kinds import SIZE, one_of, whole
from dali.cli.flags.option import SWITCH, flag

# The engine's own lists, written out because importing it takes seconds; a test compares them.
QUANTS = ("auto", "f32", "f16", "bf16", "w8", "w4", "mxfp4", "q4k")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Model:
    """None leaves a choice to `dali.load`."""

    ctx_size: int | None = flag(
        "model",
        whole(2, 0, "all the model can"),
        "tokens a conversation may have (default, and 0: all the model can)",
        "-c",
    )
    quant: str | None = flag(
        "model", one_of(QUANTS), f"format of the experts in memory: {', '.join(QUANTS)} (default: auto)"
    )
    dtype: str | None = flag(
        "model", one_of(DTYPES), f"of everything but the experts: {', '.join(DTYPES)} (default: auto)"
    )
    ram: int | None = flag("model", SIZE, "host memory to plan with (default: what is free)")
    threads: int | None = flag("model", whole(1), "CPU threads (default: all cores)", "-t")
    offline: bool = flag("model", SWITCH, "never touch the network")

    def load_options(self) -> dict[str, Any]:
        """What of `dali.load`'s parameters the flags give."""
        named = {
            "ctx_size": self.ctx_size,
            "quant": self.quant,
            "dtype": self.dtype,
            "ram": self.ram,
            "threads": self.threads,
            "offline": self.offline,
        }
        return {name: value for name, value in named.items() if value is not None}
