"""Stop strings: end a stream of text before the first of them, wherever the pieces are cut."""

from __future__ import annotations


class StopStrings:
    """Lets one sequence's text through up to its first stop string, of which no part is ever given out.

    `stops` are not empty (SamplingParams sees to that). The first to be complete wins, and of those that end
    together the longest: so the outcome does not depend on how the text is cut into pieces. An end that may
    begin a stop string is held back; it is shorter than the longest of them, so the cost of a push does not
    grow with the text.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(the text now safe to give out, the stop string that was met). With one the sequence is over."""
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            _, at, stop = min(found)
            return text[:at], stop
        safe = len(text) - max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[safe:]
        return text[:safe], None

    def flush(self) -> str:
        """What was held back, at the end of a sequence that met no stop string."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`, which is not in `text`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
