"""The fields of a request's body: each of its type, or refused by name."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from textwrap import shorten
from typing import Any

from dali.serve.http.errors import UNSUPPORTED, ApiError, invalid


class Fields:
    """What a client sent. None stands for a field that is not there, as null does; fields that nobody asks for pass."""

    def __init__(self, body: Mapping[str, Any], path: str = "") -> None:
        """path: what leads to these fields, for errors."""
        self._body = body
        self._path = path

    def __contains__(self, name: str) -> bool:
        return self._body.get(name) is not None

    def any(self, name: str) -> Any:
        return self._body.get(name)

    def text(self, name: str) -> str | None:
        value: str | None = self._typed(name, str, "a string")
        return value

    def flag(self, name: str) -> bool | None:
        value: bool | None = self._typed(name, bool, "true or false")
        return value

    def mapping(self, name: str) -> dict[str, Any] | None:
        value: dict[str, Any] | None = self._typed(name, dict, "an object")
        return value

    def list(self, name: str) -> list[Any] | None:
        value: list[Any] | None = self._typed(name, list, "an array")
        return value

    def fields(self, name: str) -> Fields:
        """Those of an object; of an empty one where it is not there."""
        return Fields(self.mapping(name) or {}, f"{self._path}{name}.")

    def whole(self, name: str, least: int | None = None, most: int | None = None) -> int | None:
        value: int | None = self._typed(name, int, "a whole number")
        self._check_range(name, value, least, most)
        return value

    def number(self, name: str, least: float | None = None, most: float | None = None) -> float | None:
        value: float | None = self._typed(name, int | float, "a number")
        if value is not None and not abs(value) <= sys.float_info.max:  # nor is NaN
            raise self.wrong(name, "a number")
        self._check_range(name, value, least, most)
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...] | None:
        """One string, or an array of at most so many."""
        value = self._body.get(name)
        if value is None:
            return None
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            raise self.wrong(name, "a string that is not empty, or an array of such strings")
        if len(texts) > most:
            raise self.wrong(name, f"at most {most} strings")
        return tuple(texts)

    def one_of(self, name: str, values: Collection[str]) -> str | None:
        value = self.text(name)
        if value is not None and value not in values:
            raise self.wrong(name, f"one of {', '.join(values)}")
        return value

    def each(self, name: str) -> Iterator[Fields]:
        """The objects of an array."""
        for at, entry in enumerate(self.list(name) or []):
            if not isinstance(entry, dict):
                raise invalid(f"{self._path}{name}[{at}] has to be an object.", f"{self._path}{name}")
            yield Fields(entry, f"{self._path}{name}[{at}].")

    def refuse(self, name: str, why: str, *passing: Any) -> None:
        """ApiError where the field is there with a value that is not one of `passing`, those that ask for nothing."""
        value = self._body.get(name)
        if value is not None and value is not False and value not in ("", [], {}, *passing):
            raise ApiError(
                400,
                f"{self._path}{name} is not supported: {why}",
                param=f"{self._path}{name}",
                code=UNSUPPORTED,
            )

    def wrong(self, name: str, expected: str) -> ApiError:
        shown = shorten(repr(self._body.get(name)), 60)
        return invalid(
            f"{self._path}{name} is {shown}, and has to be {expected}.",
            f"{self._path}{name}",
            "invalid_value",
        )

    def _typed(self, name: str, kind: Any, expected: str) -> Any:
        value = self._body.get(name)
        if value is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, expected)
        return value

    def _check_range(self, name: str, value: float | None, least: float | None, most: float | None) -> None:
        if value is None:
            return
        if (least is not None and value < least) or (most is not None and value > most):
            bounds = f"at least {least}" if most is None else f"from {least} to {most}"
            raise self.wrong(name, bounds)
