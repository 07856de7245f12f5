"""From GGUF metadata to a transformers configuration."""

from __future__ import annotations

import re
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dali.errors import DaliError, reason
from dali.loading.gguf.families import family_of
from dali.loading.gguf.keys import Fields, Keys
from dali.loading.gguf.tokenizer import TOKENS, special_id
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
    gguf.check_types()
    keys = Keys(gguf, family.architecture)
    _check_blocks(keys)
    if not keys.has("token_embd.weight"):
        raise damaged(gguf.path, "it lacks the tensor token_embd.weight")
    gating = keys.key("expert_gating_func", 0)
    if family.gating is not None and gating not in (0, family.gating):
        raise damaged(
            gguf.path,
            f"its key {family.architecture}.expert_gating_func is {gating}, and its models have {family.gating}",
        )
    tokens, rows = len(gguf.strings(TOKENS)), gguf.tensors["token_embd.weight"].shape[0]
    if tokens > rows:
        raise damaged(gguf.path, f"it has {tokens} tokens, and embeddings of {rows}")
    fields: Fields = {
        "vocab_size": rows,
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
    used, count = fields[family.used], fields[family.experts]
    if not 0 < used <= count:
        raise damaged(gguf.path, f"its expert_used_count is {used}, of {count} experts")
    given = {name: value for name, value in fields.items() if value is not None or name in KEEP_NONE}
    try:
        with quiet_transformers():
            return CONFIG_MAPPING[family.model_type](**given)
    except Exception as error:  # transformers stumbles over a wrong value wherever it first uses it
        raise damaged(
            gguf.path, f"its metadata makes no {family.model_type} model ({reason(error)})"
        ) from error


def _check_blocks(keys: Keys) -> None:
    """DaliError where tensors of a layer are missing, or there are some of a block beyond the last."""
    blocks = {int(name.split(".")[1]) for name in keys.gguf.tensors if re.match(r"blk\.\d+\.", name)}
    said: int = keys.required("block_count")
    if blocks and min(blocks) >= keys.layers:
        raise DaliError(
            f"{keys.gguf.path} has no decoder layers, only blocks that predict tokens beyond the next one.",
            "Pick the file of the whole model.",
        )
    if any(block >= said for block in blocks) or not blocks.issuperset(
        range(min(keys.layers, len(blocks) + 1))
    ):
        raise damaged(
            keys.gguf.path, f"its block_count is {said}, and it has tensors of {len(blocks)} blocks"
        )
