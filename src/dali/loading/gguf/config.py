"""From GGUF metadata to a transformers configuration."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dali.errors import DaliError, reason
from dali.loading.gguf.checks import check
from dali.loading.gguf.families import family_of
from dali.loading.gguf.keys import Fields, Keys
from dali.loading.gguf.tokenizer import special_id
from dali.loading.skeleton import quiet_transformers
from dali.store.gguf.header import Gguf, damaged

KEEP_NONE = {"q_lora_rank", "sliding_window", "bos_token_id", "eos_token_id", "pad_token_id"}  # None is meant


def read_config(gguf: Gguf, eos_ids: list[int]) -> Any:
    """The transformers configuration of a file. DaliError, naming the key, for what is missing or impossible."""
    family = family_of(gguf)
    if family.model_type not in CONFIG_MAPPING:
        raise DaliError(
            f"{gguf.path} is a {family.model_type} model, which transformers {transformers.__version__} does not have.",
            "Install a newer one: pip install -U transformers.",
        )
    keys = Keys(gguf, family.architecture)
    check(keys, family)
    fields: Fields = {
        "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
        "hidden_size": keys.required("embedding_length"),
        "intermediate_size": keys.largest("feed_forward_length"),
        "num_hidden_layers": keys.layers,
        "num_attention_heads": keys.largest("attention.head_count"),
        "num_key_value_heads": keys.largest("attention.head_count_kv")
        or keys.largest("attention.head_count"),
        "max_position_embeddings": keys.required("context_length"),
        "rms_norm_eps": keys.epsilon,
        family.used: keys.required("expert_used_count"),
        family.experts: keys.required("expert_count"),
        "tie_word_embeddings": not keys.has("output.weight"),
        "rope_parameters": keys.rope(),
        "bos_token_id": special_id(gguf, "bos"),
        "eos_token_id": eos_ids or None,
        "pad_token_id": None,  # nothing is padded here
    } | family.fields(keys)
    given = {name: value for name, value in fields.items() if value is not None or name in KEEP_NONE}
    try:
        with quiet_transformers():
            return CONFIG_MAPPING[family.model_type](**given)
    except Exception as error:  # transformers stumbles over a wrong value wherever it first uses it
        raise damaged(
            gguf.path, f"its metadata makes no {family.model_type} model ({reason(error)})"
        ) from error
