"""What values may be, where several flags take the same."""

from __future__ import annotations

from collections.abc import Mapping

from dali.cli.flags.option import Kind
from dali.units import parse_size


def whole(least: int, none: int | None = None, meaning: str = "") -> Kind:
    """A whole number from `least`, or `none`: what llama.cpp writes for `meaning`, here as good as no flag."""

    def parse(text: str) -> int | None:
        value = int(text)
        if value == none:
            return None
        if value < least:
            raise ValueError
        return value

    expected = f"a whole number from {least}"
    return Kind("N", expected if none is None else f"{expected}, or {none} for {meaning}", parse)


def wholes(least: int) -> Kind:
    """Whole numbers from `least`, with commas between them."""

    def parse(text: str) -> tuple[int, ...]:
        numbers = tuple(int(part) for part in text.split(","))
        if min(numbers) < least:
            raise ValueError
        return numbers

    return Kind("N", f"whole numbers from {least}, with commas between them", parse)


def _factor(text: str) -> float:
    value = float(text)
    if not 1 <= value < 2**20:
        raise ValueError
    return value


def one_of(names: tuple[str, ...], metavar: str = "NAME", near: Mapping[str, str] | None = None) -> Kind:
    """near: what others call one of `names`."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return Kind(metavar, f"one of {', '.join(names)}", parse, near or {})


def _some_name(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _some_text(text: str) -> str:
    text.encode()  # the name of a file may be no UTF-8, but not what a model reads
    return _some_name(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(_some_name(name) for name in text.split(","))


TEXT = Kind("TEXT", "some text in UTF-8", _some_text)
FILE = Kind("FILE", "the name of a file", _some_name)
FOLDER = Kind("DIR", "the name of a folder", _some_name)
NAMES = Kind("NAMES", "names with commas between them", _names)
COUNTS = wholes(1)
FACTOR = Kind("F", "a number from 1, such as 4", _factor)
SIZE = Kind("SIZE", "a size like 8GiB or 500MB", parse_size)
