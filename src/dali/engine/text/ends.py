"""The tokens that end an answer, and those that only control, whatever a tokenizer's files call them."""

from __future__ import annotations

import re
from typing import Any

from tokenizers import AddedToken

# Tokens that end a turn in some chat format, in case a model's files name only one of them (as llama.cpp does).
ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "</s>",
    "<EOT>", "_<EOT>", "<｜end▁of▁sentence｜>", "<|return|>", "<|call|>",
}  # fmt: skip

MARKER = re.compile(r"<[|｜][^|｜<>\s]{1,60}[|｜]>")  # as chat templates spell control tokens
MARKER_OR_TAG = re.compile(r"</?[^<>\s]{1,60}>|\[/?[A-Z_]{1,60}\]")
SAID = "\ufdd2"  # stands for an answer; a noncharacter, which no template has


def end_ids(tokenizer: Any) -> frozenset[int]:
    """What a tokenizer holds to end an answer with: the special tokens that some chat format is known to end turns with, and the
    token that the model's own template writes after an answer."""
    special = {str(token): id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = ENDS | {turn_end(tokenizer)}
    if "<|return|>" in special:  # gpt-oss goes on after <|end|>
        ends.remove("<|end|>")
    return frozenset(id for token, id in special.items() if token in ends)


def eos_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: those that the model's files name, and those of `end_ids`."""
    own = model.config.get_text_config().eos_token_id
    ids = [model.generation_config.eos_token_id, own, tokenizer.eos_token_id]
    named = {i for entry in ids for i in (entry if isinstance(entry, list) else [entry]) if i is not None}
    return end_ids(tokenizer) | named


def turn_end(tokenizer: Any) -> str | None:
    """The token that the chat template writes right after an answer, if it writes one."""
    conversation = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": SAID}]
    if not tokenizer.chat_template:
        return None
    try:
        rendered = tokenizer.apply_chat_template(conversation, tokenize=False)
    except Exception:  # a template for other conversations than this one
        return None
    _, said, after = rendered.rpartition(SAID)
    after = after.lstrip()
    added = [token for token in tokenizer.get_added_vocab() if token.strip() and after.startswith(token)]
    if added:
        return max(added, key=len) if said else None
    marker = MARKER_OR_TAG.match(after)
    return marker[0] if said and marker and _is_token(tokenizer, marker[0]) else None


def take_for_control(tokenizer: Any) -> list[str]:
    """Make control tokens of those that are used as such and are none in the tokenizer's files: the one that ends an answer,
    and markers in the chat template that would be split into letters. Returns them."""
    added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    markers = set(MARKER.findall(str(tokenizer.chat_template or "")))
    wrong = {marker for marker in markers if marker not in added and _is_token(tokenizer, marker)}
    end = turn_end(tokenizer)
    if end is not None and not (end in added and added[end].special):
        wrong.add(end)
    tokens = sorted(wrong)
    if tokens:
        given = [added.get(token, AddedToken(token, normalized=False)) for token in tokens]
        for token in given:
            token.special = True
        tokenizer.add_tokens(given, special_tokens=True)
    return tokens


def _is_token(tokenizer: Any, text: str) -> bool:
    token = tokenizer.convert_tokens_to_ids(text)
    return token is not None and tokenizer.convert_ids_to_tokens(token) == text
