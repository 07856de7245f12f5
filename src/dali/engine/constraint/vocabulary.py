"""A tokenizer's vocabulary as llguidance takes it: the bytes of each token, and which are control tokens."""

from __future__ import annotations

import re
from typing import Any

from llguidance import LLTokenizer

from dali.engine.text.token_bytes import all_token_bytes

MARK = re.compile(r"[<[◁]\S+[]>▷]")


class Vocabulary:
    """`controls`: the id of each control token by its spelling, which grammars name them by. A control token is never text, so no
    text of a grammar can be one; all other tokens are the bytes they add to a text. `marks`: those of them that models divide
    their answers with, as <tool_call>. `ends`: those that end an answer;
    `drops_space`: whether a space that an answer begins with is no part of its text, as in SentencePiece's decoders."""

    def __init__(self, tokenizer: Any, eos: frozenset[int]) -> None:
        """eos: tokens that end an answer. Takes a second for a large vocabulary."""
        self.controls = {
            str(token): id for id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        added = tokenizer.get_added_vocab()
        self.marks = {token: id for token, id in added.items() if MARK.fullmatch(token)}
        self.ends = frozenset(token for token, id in self.controls.items() if id in eos)
        self.drops_space = _drops_space(tokenizer)
        special = {*self.controls.values(), *eos} | {tokenizer.unk_token_id} - {None}
        size = max([len(tokenizer), *(id + 1 for id in special)])
        spelt = all_token_bytes(tokenizer, size)
        for token in special:
            spelt[token] = spelt[token] or b"control"
        ends = sorted(eos) or [size]  # one that no model has
        if not eos:
            spelt.append(b"end")
            special.add(size)
        tokens: Any = _Tokens(spelt, sorted(special), ends[0])
        self.library = LLTokenizer(tokens, eos_token=ends)


def _drops_space(tokenizer: Any) -> bool:
    spaced = (id for token, id in tokenizer.get_vocab().items() if token.startswith("▁") and len(token) > 1)
    first = next(spaced, None)
    return first is not None and not tokenizer.decode([first]).startswith(" ")


class _Tokens:
    """What LLTokenizer reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: list[int], eos: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = eos

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text that a grammar forces. Nobody asks: our grammars leave the choice of tokens to the model."""
        return []
