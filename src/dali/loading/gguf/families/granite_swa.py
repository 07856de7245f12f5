"""Granite's MoE models with layers that attend to a window."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.families.granitemoe import BLOCKS, SHARED, multipliers
from dali.loading.gguf.keys import Fields, Keys
from dali.loading.gguf.parts import PAIRWISE


def _fields(keys: Keys) -> Fields:
    return multipliers(keys) | {
        "sliding_window": keys.required("attention.sliding_window"),
        "layer_types": keys.windows(1),
    }


FAMILY = Family(
    "granite_swa",
    "granitemoe_swa",
    "num_local_experts",
    _fields,
    blocks=BLOCKS,
    made=PAIRWISE | SHARED,
)
