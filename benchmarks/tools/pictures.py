"""The README's pictures, docs/images: what two commands print, and a report of `dali simulate`, both run as they are shown.

    python benchmarks/tools/pictures.py [--browser chromium]

The report is photographed by a Chromium that runs without a window; without one only the first picture is made.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path
from textwrap import wrap

IMAGES = Path(__file__).parents[2] / "docs" / "images"
DALI = [sys.executable, "-m", "dali"]
RUNS = (
    ["run", "Tell me a story about a little dog.", "--seed", "1"],
    ["run", "hi there", "--device", "sim:paper", "--vram", "3MB", "-n", "20", "--seed", "1"],
)
PROMPTS = (
    "Tell me a story about a little dog.",
    "Hello!",
    "Good morning. How are you?",
    "Tell me about the sea.",
)
COMPARED = "default,dali-paper,hybrimoe,fiddler,freetoken,mixtral-offloading,all-cpu"
COLUMNS, LINE, CHARACTER, MARGIN = 104, 19, 8.43, 18  # pixels but for the first; 14 px of a monospaced font
INK, PAPER, DIM = "#e6e6e6", "#1e1e1e", "#8fc7ff"


def shown(command: list[str]) -> str:
    """The command as somebody would type it."""
    return " ".join(["dali", *(f'"{word}"' if " " in word else word for word in command)])


def terminal(sessions: list[tuple[str, str]]) -> str:
    """An SVG of a terminal: each command after a prompt sign, and below it what it printed."""
    lines: list[tuple[str, str]] = []
    for command, output in sessions:
        lines += [(f"$ {command}", DIM)]
        for line in output.splitlines():
            lines += [(part, INK) for part in wrap(line, COLUMNS) or [""]]
        lines += [("", INK)]
    lines.pop()
    width, height = round(2 * MARGIN + COLUMNS * CHARACTER), 2 * MARGIN + LINE * len(lines)
    texts = "\n".join(
        f'<text x="{MARGIN}" y="{MARGIN + LINE * row + 14}" fill="{colour}" xml:space="preserve">{escape(text)}</text>'
        for row, (text, colour) in enumerate(lines)
        if text
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14">\n'
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>\n{texts}\n</svg>\n'
    )


def draw_runs() -> None:
    sessions = []
    for command in RUNS:
        done = subprocess.run([*DALI, *command], check=True, capture_output=True, text=True)
        sessions.append((shown(command), done.stdout.rstrip("\n") + "\n" + done.stderr.rstrip("\n")))
    (IMAGES / "run.svg").write_text(terminal(sessions), encoding="utf-8")


def photograph_report(browser: str) -> None:
    """A trace of a few answers, replayed under some systems; its page, from the top."""
    with tempfile.TemporaryDirectory() as folder:
        trace, page = "dali-tiny.npz", "report.html"  # the page shows the command
        record = ["trace", "-o", trace, "--hidden", "-n", "96", "--seed", "1"]
        subprocess.run([*DALI, *record], check=True, input="\n".join(PROMPTS), text=True, cwd=folder)
        replay = f"simulate {trace} --policy {COMPARED} --shape qwen3-30b-a3b --cache-slots 25%".split()
        subprocess.run([*DALI, *replay, "--html", page], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--window-size=760,1060",
        ]
        picture = f"--screenshot={IMAGES / 'report.png'}"
        subprocess.run(
            [browser, *options, picture, Path(folder, page).as_uri()], check=True, capture_output=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--browser", default="chromium")
    browser = parser.parse_args().browser
    IMAGES.mkdir(exist_ok=True)
    draw_runs()
    if shutil.which(browser):
        photograph_report(browser)


if __name__ == "__main__":
    main()
