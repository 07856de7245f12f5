"""Words at a terminal's edge."""

from __future__ import annotations

import pytest

from dali.cli.chat.wrapping import Wrapping


def shown(text: str, width: int, size: int) -> str:
    wrapping = Wrapping(width)
    return "".join(wrapping.push(text[at : at + size]) for at in range(0, len(text), size)) + wrapping.flush()


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two", "one two"),
        ("one two three", "one two \nthree"),
        ("one two34 five", "one two34\nfive"),  # the line is full: its end is white space enough
        ("one\ntwo  three\n", "one\ntwo  \nthree\n"),
        ("a incomprehensible b", "a \nincomprehensible b"),
        ("  two 345", "  two 345"),
        ("\tone", "\t\none"),
        ("caf\u00e9s e\u0301te\u0301s", "caf\u00e9s \ne\u0301te\u0301s"),
        ("a\u4f60\u597d\u4e16\u754c\u4f60", "a\u4f60\u597d\u4e16\u754c\n\u4f60"),
        ("", ""),
    ],
)
def test_no_word_is_broken_that_fits_a_line(text, expected, size):
    assert shown(text, 9, size) == expected


def test_a_word_is_shown_when_it_has_ended():
    wrapping = Wrapping(9)
    assert [wrapping.push(piece) for piece in ("on", "e t", "wo", " ")] == ["", "one ", "", "two "]
