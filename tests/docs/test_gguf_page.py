"""docs/GGUF.md lists the architectures that there are, and calls those tried that have a converted file."""

from __future__ import annotations

import re
from pathlib import Path

from dali.loading.gguf.families import families

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "GGUF.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([\w.-]+)` \| [^|]+ \| [^|]+ \| ([^|]+) \|$", PAGE, re.M)


def test_every_architecture_is_listed():
    assert sorted(name for name, _ in ROWS) == sorted(families())


def test_what_is_called_converted_is():
    files = {file.name for file in (ROOT / "tests" / "loading" / "gguf" / "converted").iterdir()}
    converted = [name for name, tried in ROWS if tried == "converted"]
    assert [name for name in converted if f"{name}.gguf.xz" not in files] == []
