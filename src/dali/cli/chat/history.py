"""What was typed before, also in earlier chats."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dali.cli.terminal import log

MOST = 1000  # messages that are kept; twice as many may be in the file


class History:
    """Messages that the arrow keys bring back, in a file that only the user may read: one JSON string a line, since a message may
    have several lines. What cannot be read or written is left out: nobody's answer depends on it."""

    def __init__(self, readline: Any, file: Path) -> None:
        self._readline = readline
        self._file = file
        readline.set_auto_history(False)
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            if len(lines) > 2 * MOST:
                self._write("\n".join(lines[-MOST:]) + "\n", os.O_TRUNC)
            for line in lines[-MOST:]:
                readline.add_history(str(json.loads(line)))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.debug("Cannot read %s: %s", file, error)

    def add(self, message: str) -> None:
        self._readline.add_history(message)
        try:
            self._write(json.dumps(message) + "\n", os.O_APPEND)
        except OSError as error:
            log.debug("Cannot write %s: %s", self._file, error)

    def _write(self, text: str, how: int) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(self._file, os.O_WRONLY | os.O_CREAT | how, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
