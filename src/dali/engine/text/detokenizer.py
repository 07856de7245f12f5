"""Streaming detokenisation: tokens in, finished text out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
# A character has at most 4 bytes, so the bytes of an unfinished one lie within the last 3 tokens.
WINDOW = 3


class Detokenizer:
    """Turns one sequence's tokens into pieces of text that are final when they are given out.

    The pieces joined equal `tokenizer.decode(ids, skip_special_tokens=True,
    clean_up_tokenization_spaces=False)`, for the decoders that MoE models use: ByteLevel (Qwen, gpt-oss,
    OLMoE, DeepSeek) and SentencePiece's (Mixtral, Phi).

    Only the last `WINDOW` tokens are decoded again with a new one, and what the text grew by is the piece:
    amortised O(1) a token. The window's beginning may decode otherwise than it did in its place (a stripped
    leading space, half a character), but only its length is used, and that does not depend on what follows.
    Held back are:

    - ByteLevel: a last U+FFFD, which is how `decode` shows the bytes of an unfinished character. All before
      it is final, so invalid bytes are given out as `decode` replaces them, one character late at most.
    - Byte fallback: a run of `<0xNN>` tokens, until a token of another kind ends it: one invalid byte would
      make `decode` replace every byte of the run, finished characters included.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._given = 0  # characters of the window's text that were given out

    def push(self, token_id: int) -> str:
        """The text that `token_id` made final: often one word, "" while something is held back."""
        # Special and unknown ids give no text and must not take up the window. Asked twice over, since the
        # decoder may strip a space token that comes first.
        if not self._decode([token_id, token_id]):
            return ""
        self._window.append(token_id)
        if BYTE_TOKEN.fullmatch(self._tokenizer.convert_ids_to_tokens(token_id)):
            return ""
        text = self._decode(self._window)
        held = text.endswith(REPLACEMENT)
        piece = text[self._given : len(text) - held]
        self._window = self._window[-WINDOW:]
        self._given = len(self._decode(self._window)) - held
        return piece

    def flush(self) -> str:
        """What is still held back, as `decode` shows it. The sequence is over."""
        piece = self._decode(self._window)[self._given :]
        self._window, self._given = [], 0
        return piece

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
