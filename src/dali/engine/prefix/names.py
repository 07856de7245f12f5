"""How entries of the prefix cache are named on disk: by a hash of the model, of what its bits depend on, and of all tokens up to
the entry's end. So whoever asks for a prefix knows the names to look for, and no two prefixes share one."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator

BLOCK, PLACE = "block", "place"  # kinds of entries: a whole block, and what is kept in the middle of one
PATTERN = re.compile(rf"[0-9a-f]{{40}}\.(?:{BLOCK}|{PLACE})")


class Names:
    """Of what ends behind the tokens it was told of, and a little later."""

    def __init__(self, identity: str, regime: int) -> None:
        self._digest = hashlib.blake2b(f"{identity} {regime}".encode(), digest_size=20)

    def advance(self, tokens: Iterable[int]) -> None:
        """Go on behind these tokens, too."""
        self._digest.update(array("q", tokens).tobytes())

    def name(self, kind: str, tokens: Iterable[int] = ()) -> str:
        """Of what ends so many tokens later."""
        later = self._copy()
        later.advance(tokens)
        return f"{later._digest.hexdigest()}.{kind}"

    def after(self, tokens: Iterable[int]) -> Names:
        """Those of what comes behind these tokens."""
        names = self._copy()
        names.advance(tokens)
        return names

    def places(self, tokens: Iterable[int]) -> Iterator[str]:
        """Of places: here, and after each of the tokens."""
        names = self._copy()
        yield names.name(PLACE)
        for token in tokens:
            names.advance((token,))
            yield names.name(PLACE)

    def _copy(self) -> Names:
        twin = object.__new__(Names)
        twin._digest = self._digest.copy()
        return twin
