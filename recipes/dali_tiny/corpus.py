#!/usr/bin/env python3
"""Collect the openly licensed text of dali-tiny, one .txt file a domain, documents separated by a NUL.

README.md says how to fill --raw: books/*.txt, kjv.txt and factbook/*/*.json. The Python source is the
standard library of the interpreter that runs this.
"""

from __future__ import annotations

import argparse
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# all authors but one died before 1937; SOURCES.md names them and their rights
TALES = ["grimm", "bryant-stories", "carroll-alice", "edgeworth-parents"]
NOVELS = [
    "sawyer-twain",
    "doyle-holmes",
    "austen-pride-and-prejudice",
    "dickens-christmas-carol",
    "dickens-expectations",
    "stevenson-hyde",
    "shelley-frankenstein",
    "wilde-dorian",
    "dickens-twist",
    "dracula-stoker",
    "austen-emma",
    "chesterton-brown",
]
PYTHON_PACKAGES = [
    "asyncio",
    "collections",
    "concurrent/futures",
    "email",
    "html",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml/etree",
    "wsgiref",
]
PYTHON_SKIPPED = {"this.py", "antigravity.py", "turtle.py", "mimetypes.py", "_pydecimal.py"}
FACTBOOK_SECTIONS = ["Introduction", "Geography", "People and Society", "Government", "Economy"]
TO_ASCII = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2014": "--",
        "\u2013": "-",
        "\u2026": "...",
        "\u00a0": " ",
        "\ufeff": "",
        "\u00e9": "e",
        "\u00e8": "e",
        "\u00ea": "e",
        "\u00e6": "ae",
    }
)


def write_domain(folder: Path, name: str, documents: list[str]) -> None:
    (folder / f"{name}.txt").write_text("\0".join(documents), encoding="utf-8")
    print(f"{name:10s} {len(documents):6d} documents {sum(map(len, documents)) / 1e6:6.2f} MB", flush=True)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")


def ascii_only(text: str) -> str:
    return text.encode("ascii", "ignore").decode()


def book(path: Path) -> Iterator[str]:
    """Pieces of some 2,500 characters, whole paragraphs, one a line."""
    text = ascii_only(read(path).replace("\r", "").translate(TO_ASCII))
    paragraphs = [re.sub(r"\s+", " ", each).strip().replace("_", "") for each in re.split(r"\n\s*\n", text)]
    prose = [each for each in paragraphs if len(each) > 20 and not each.isupper()]
    piece: list[str] = []
    for paragraph in prose[2:]:  # after the title
        piece.append(paragraph)
        if sum(map(len, piece)) > 2500:
            yield "\n".join(piece)
            piece = []
    if piece:
        yield "\n".join(piece)


def king_james(path: Path) -> list[str]:
    """One chapter a document, one verse a line; a line reads "Gen1:1 In the beginning..."."""
    chapters: dict[tuple[str, str], list[str]] = {}
    for line in read(path).splitlines():
        if verse := re.match(r"([1-3]?[A-Za-z]+)(\d+):\d+ (.*)", line):
            chapters.setdefault((verse[1], verse[2]), []).append(verse[3].strip())
    return ["\n".join(verses) for verses in chapters.values()]


def standard_library() -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    folders = [library, *(library / package for package in PYTHON_PACKAGES)]
    files = sorted(str(path) for folder in folders for path in folder.glob("*.py"))
    wanted = [path for path in map(Path, files) if path.name not in PYTHON_SKIPPED]
    return [re.sub(r"[ \t]+\n", "\n", ascii_only(read(path))).strip() for path in wanted]


def country(profile: dict[str, Any]) -> str:
    """The sections that matter, one "key: text" a line."""
    lines: list[str] = []

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, each in value.items():
                walk(each, key if name == "text" else name)
        elif isinstance(value, str):
            text = ascii_only(re.sub(r"\s+", " ", value.translate(TO_ASCII))).strip()
            if 3 < len(text) < 900:
                lines.append(f"{key}: {text}")

    for section in FACTBOOK_SECTIONS:
        if section in profile:
            lines.append(f"== {section} ==")
            walk(profile[section], section)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, required=True, help="the folder with what was downloaded")
    parser.add_argument("--out", type=Path, required=True, help="folder of the .txt files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    books = options.raw / "books"
    write_domain(options.out, "tales", [piece for name in TALES for piece in book(books / f"{name}.txt")])
    write_domain(options.out, "novels", [piece for name in NOVELS for piece in book(books / f"{name}.txt")])
    write_domain(options.out, "kjv", king_james(options.raw / "kjv.txt"))
    write_domain(options.out, "python", [source for source in standard_library() if source])
    profiles = sorted((options.raw / "factbook").glob("*/*.json"), key=str)
    countries = [country(json.loads(path.read_bytes())) for path in profiles]
    write_domain(options.out, "factbook", [text for text in countries if text])


if __name__ == "__main__":
    main()
