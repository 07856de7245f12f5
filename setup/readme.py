"""README.md as an index page shows it: scikit-build-core's provider of the package's `readme`.

A page of a package index lies elsewhere than the repository, so relative links lead nowhere there. They become absolute if
pyproject.toml names the repository (`[project.urls] Repository`), and else the words they stand on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#|mailto:)([^)\s]+)\)")


def index_page(text: str, repository: str | None) -> str:
    def replaced(link: re.Match[str]) -> str:
        image, words, target = link.groups()
        if not repository:
            return words
        return f"{image}[{words}]({repository.rstrip('/')}/{'raw' if image else 'blob'}/main/{target})"

    return RELATIVE.sub(replaced, text)


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, Any]:
    text = README.read_text(encoding="utf-8")
    page = index_page(text, project.get("urls", {}).get("Repository"))
    return {"readme": {"content-type": "text/markdown", "text": page}}
