"""What a stage found, kept in a file that is whole after every line, so that a stage that is killed leaves what it had."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class CannotRun(Exception):
    """A stage lacks what it needs; the message is one sentence that says what."""


class Result:
    """Rows for people, limits to keep, figures for a hardware profile. `path` None: kept in memory alone."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.found: dict[str, Any] = {"ended": False, "rows": [], "limits": [], "figures": {}, "notes": []}

    @property
    def folder(self) -> Path | None:
        """Where the report lies."""
        return None if self._path is None else self._path.parent.parent

    @property
    def profile(self) -> Path | None:
        """What earlier stages measured of this machine, once there is a report."""
        path = None if self.folder is None else self.folder / "profile.json"
        return path if path is not None and path.is_file() else None

    def row(self, **columns: Any) -> None:
        self.found["rows"].append(columns)
        self._keep()

    def note(self, sentence: str) -> None:
        self.found["notes"].append(sentence)
        self._keep()

    def figure(self, name: str, value: float, how: str) -> None:
        """A profile's figure (dali.hardware.profile.UNITS), in its unit."""
        self.found["figures"][name] = {"value": float(value), "how": how}
        self._keep()

    def limit(
        self, what: str, value: float, *, least: float | None = None, most: float | None = None
    ) -> None:
        """A value that must be at least, or at most, what is given."""
        kept = (least is None or value >= least) and (most is None or value <= most)
        bound = f">= {least:g}" if most is None else f"<= {most:g}"
        value = round(float(value), 4)
        self.found["limits"].append({"what": what, "value": value, "limit": bound, "kept": kept})
        self._keep()

    def end(self, **what: Any) -> None:
        """The stage is through; `cannot` or `error` says why it found nothing."""
        self.found |= {"ended": True, **what}
        self._keep()

    def _keep(self) -> None:
        if self._path is not None:
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps(self.found), encoding="utf-8")
            fresh.replace(self._path)


def outcome(found: Mapping[str, Any]) -> str:
    """One word for a stage: passed, missed (a limit), failed, stopped (by its time limit), not run."""
    if found.get("stopped"):
        return "stopped"
    if found.get("cannot"):
        return "not run"
    if found.get("error") or not found.get("ended"):
        return "failed"
    return "passed" if all(limit["kept"] for limit in found["limits"]) else "missed"
