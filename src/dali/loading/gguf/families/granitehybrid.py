"""Granite-4's MoE models: layers of Mamba-2 between those of attention."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.families.granitemoe import BLOCKS, SHARED, multipliers
from dali.loading.gguf.keys import Fields, Keys
from dali.loading.gguf.parts import PAIRWISE, log_of_negative


def _fields(keys: Keys) -> Fields:
    mamba = keys.mamba()
    return multipliers(keys) | {
        "layer_types": [
            "full_attention" if keys.has(f"blk.{layer}.attn_q.weight") else "linear_attention"
            for layer in range(keys.layers)
        ],
        "position_embedding_type": "rope" if keys.key("rope.scaling.finetuned", True, bool) else None,
        "mamba_n_heads": mamba.heads,
        "mamba_d_head": mamba.width,
        "mamba_n_groups": mamba.groups,
        "mamba_d_state": mamba.state,
        "mamba_d_conv": mamba.taps,
        "mamba_expand": mamba.heads * mamba.width // keys.required("embedding_length"),
        "mamba_conv_bias": keys.shape("ssm_conv1d", "bias") is not None,
        "mamba_proj_bias": keys.shape("ssm_in", "bias") is not None,
    }


FAMILY = Family(
    "granitehybrid",
    "granitemoehybrid",
    "num_local_experts",
    _fields,
    blocks=BLOCKS
    | {
        "ssm_in": "mamba.in_proj",
        "ssm_conv1d": "mamba.conv1d",
        "ssm_dt.bias": "mamba.dt_bias",
        "ssm_d": "mamba.D",
        "ssm_norm": "mamba.norm",
        "ssm_out": "mamba.out_proj",
    },
    made=PAIRWISE | SHARED | {"mamba.A_log": log_of_negative("ssm_a")},
)
