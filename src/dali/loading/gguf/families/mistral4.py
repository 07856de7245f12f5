"""Mistral's MoE models with attention by latents, such as Small 4."""

from __future__ import annotations

from dali.loading.gguf.families import Family
from dali.loading.gguf.families.deepseek2 import LATENT, SPLIT, latent
from dali.loading.gguf.keys import NUMBER, Fields, Keys


def _fields(keys: Keys) -> Fields:
    fields = latent(keys)
    rotary, rest = fields["qk_rope_head_dim"], fields["qk_nope_head_dim"]
    fields["rope_parameters"] |= {
        "partial_rotary_factor": rotary / max(rotary + rest, 1),
        # llama.cpp's converter leaves it out of files made from transformers' checkpoints; all published models have this one.
        "llama_4_scaling_beta": float(keys.key("attention.temperature_scale", 0.1, NUMBER)),
    }
    if fields["rope_parameters"]["rope_type"] != "yarn":
        fields["rope_parameters"]["original_max_position_embeddings"] = keys.required("context_length")
    return fields | {"norm_topk_prob": keys.key("expert_weights_norm", True, bool)}


FAMILY = Family("mistral4", "mistral4", "n_routed_experts", _fields, blocks=LATENT, made=SPLIT)
