"""What one token spells, which may be part of a character."""

from __future__ import annotations

from functools import cache
from typing import Any

from dali.engine.text.detokenizer import BYTE_TOKEN, REPLACEMENT


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes that `token` adds to a text."""
    name = tokenizer.convert_ids_to_tokens(token)
    if name is None:  # beyond the tokenizer: a model's matrix may have more rows
        return b""
    text: str = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return _spelt(name, text)


def all_token_bytes(tokenizer: Any, count: int) -> list[bytes]:
    """The same of the first `count` tokens."""
    known = [token for token in range(count) if token < len(tokenizer)]
    names = tokenizer.convert_ids_to_tokens(known)
    # One by one they take seconds in a large vocabulary.
    texts = tokenizer.backend_tokenizer.decode_batch([[token] for token in known], skip_special_tokens=False)
    spelt = [b"" if name is None else _spelt(name, text) for name, text in zip(names, texts, strict=True)]
    return spelt + [b""] * (count - len(spelt))


def _spelt(name: str, text: str) -> bytes:
    """text: what is decoded of the token alone."""
    if BYTE_TOKEN.fullmatch(name):
        return bytes([int(name[3:5], 16)])
    letters = _byte_letters()
    if REPLACEMENT in text and all(letter in letters for letter in name):
        return bytes(letters[letter] for letter in name)
    if name.startswith("▁") and not text.startswith(" "):  # SentencePiece's decoder strips a first space
        text = f" {text}"
    return text.encode(errors="replace")


@cache
def _byte_letters() -> dict[str, int]:
    """ByteLevel's alphabet: printable bytes stand for themselves, the others for the letters from 256 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
