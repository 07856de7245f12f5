"""A piece of an answer."""

from __future__ import annotations

import secrets
import string
from typing import NamedTuple

ID_LETTERS = string.ascii_letters + string.digits
ID_LENGTH = 9  # what Mistral's templates insist on, and no others mind


class Call(NamedTuple):
    """A piece of the answer's call `number`, from 0: the first has the `name` of the tool, all add to `arguments`, in JSON."""

    number: int
    name: str = ""
    arguments: str = ""


class Piece(NamedTuple):
    """Final text of the answer, or of the reasoning before it, or a piece of a call where calls are told apart: the others are
    empty."""

    text: str = ""
    reasoning: str = ""
    call: Call | None = None


def call_id() -> str:
    """A new one, by which a result says of which call it is."""
    return "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH))
