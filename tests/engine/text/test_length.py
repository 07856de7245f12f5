"""Prompts that leave no room for an answer."""

from __future__ import annotations

import pytest

from dali.engine.text.length import LETTERS, check_texts, too_long
from dali.errors import TooLong


class Counted:
    """A tokenizer that remembers how much it has read."""

    def __init__(self, letters_a_token=1):
        self.letters, self._each = 0, letters_a_token

    def __call__(self, text, **_):
        self.letters += len(text)
        return {"input_ids": [0] * (len(text) // self._each)}


@pytest.mark.parametrize("letters", [90, 101, 2 * LETTERS * 100])
def test_what_is_not_much_too_long_is_not_looked_at(letters):
    tokenizer = Counted()
    check_texts(tokenizer, ["a" * letters, None], 100, 100)
    assert tokenizer.letters == 0


def test_a_beginning_tells():
    tokenizer = Counted()
    with pytest.raises(TooLong, match="more than 100 tokens"):
        check_texts(tokenizer, ["a", "a" * 10**6], 100, 100)
    assert tokenizer.letters == LETTERS * 100


def test_what_a_beginning_does_not_tell_is_left_to_all_of_it():
    check_texts(Counted(30), ["a" * 10**6], 100, 100)


def test_a_larger_context_is_only_advised_where_there_is_one():
    assert too_long(512, 512, 512).fix == "Shorten it."
    assert too_long(512, 512, 1024).fix == "Shorten it, or raise ctx_size (at most 1024)."
