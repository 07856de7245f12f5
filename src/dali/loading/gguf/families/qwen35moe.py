"""Qwen3.5's and Qwen3.6's MoE models: as Qwen3-Next, with the value heads of a key head apart.

The file has the first value head of each key head, then the second of each, and so on; the model has a key head's together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dali.loading.gguf.families import Family
from dali.loading.gguf.families.qwen3next import BLOCKS, NORMS, delta
from dali.loading.gguf.keys import Fields, Keys
from dali.loading.gguf.parts import Made, Ordered, Part, grid

if TYPE_CHECKING:
    from torch import Tensor


def _fields(keys: Keys) -> Fields:
    fields = delta(keys)
    sections = keys.key("rope.dimension_sections", None, list)
    if sections is not None:
        fields["rope_parameters"] |= {"mrope_section": sections[:3]}
    return fields


def _values(config: Any, count: int) -> NDArray[np.int64]:
    keys = config.linear_num_key_heads
    each = config.linear_num_value_heads // keys
    return grid(count, each, keys, -1).swapaxes(0, 1).reshape(-1)


def _after_keys(config: Any, count: int) -> NDArray[np.int64]:
    """The rows of queries and keys stay, those of values behind them do not."""
    first = 2 * config.linear_num_key_heads * config.linear_key_head_dim
    return np.concatenate([np.arange(first), first + _values(config, count - first)])


def _rates(config: Any, value: Tensor) -> Tensor:
    return (-value)[_values(config, len(value))].log()


TILED: dict[str, Part] = {
    "linear_attn.in_proj_qkv.weight": Ordered(_after_keys),
    "linear_attn.conv1d.weight": Ordered(_after_keys),
    "linear_attn.in_proj_z.weight": Ordered(_values),
    "linear_attn.in_proj_a.weight": Ordered(_values),
    "linear_attn.in_proj_b.weight": Ordered(_values),
    "linear_attn.dt_bias": Ordered(_values),
    "linear_attn.A_log": Made(("ssm_a",), _rates),
    "linear_attn.out_proj.weight": Ordered(_values, columns=True),
}
FAMILY = Family(
    "qwen35moe",
    "qwen3_5_moe_text",
    "num_experts",
    _fields,
    blocks=BLOCKS
    | {
        "attn_qkv": "linear_attn.in_proj_qkv",
        "attn_gate": "linear_attn.in_proj_z",
        "ssm_alpha": "linear_attn.in_proj_a",
        "ssm_beta": "linear_attn.in_proj_b",
    },
    made=NORMS | TILED,
)
