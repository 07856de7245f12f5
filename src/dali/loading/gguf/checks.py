"""What metadata cannot mean, whatever the family: told before anything is made of it, and without torch or transformers."""

from __future__ import annotations

import re

from dali.errors import DaliError
from dali.loading.gguf.families import Family
from dali.loading.gguf.keys import Keys
from dali.store.gguf.header import damaged

TOKENS = "tokenizer.ggml.tokens"


def check(keys: Keys, family: Family) -> None:
    """DaliError, naming the key or the tensor, for a file whose blocks, tokens or experts are not those that its keys tell of."""
    gguf = keys.gguf
    gguf.check_types()
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
    used, count = keys.required("expert_used_count"), keys.required("expert_count")
    if not 0 < used <= count:
        raise damaged(gguf.path, f"its expert_used_count is {used}, of {count} experts")


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
