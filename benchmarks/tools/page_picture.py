"""The README's picture of the server's page, docs/images/page.png: the bundled model tells stories, to somebody else as well.

    python benchmarks/tools/page_picture.py [--scheme dark] [--to page.png]

Needs selenium, and a Chromium with its driver (Debian: chromium, chromium-driver).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from serve.page.browser import Page, chromium  # noqa: E402

QUESTIONS = (
    ("What day comes after Friday?",),
    ("Tell me a story about a little dog.", "Tell me another story, about a big cat."),
)
SETTINGS = {"max_tokens": "90", "temperature": "0"}
ENTER = "\ue007"
OTHERS = {"messages": [{"role": "user", "content": QUESTIONS[1][0]}], "max_tokens": 300, "ignore_eos": True}
SIZE = 1120, 800


@contextmanager
def server() -> Iterator[str]:
    """Where `dali serve` listens."""
    command = [sys.executable, "-m", "dali", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serving:
        assert serving.stderr is not None
        try:
            yield next(
                word.rstrip(".,") for line in serving.stderr for word in line.split() if "http://" in word
            )
        finally:
            serving.terminate()


@contextmanager
def others(url: str) -> Iterator[None]:
    """Somebody else who asks all the time."""
    done = Event()

    def ask() -> None:
        while not done.is_set():
            asked = Request(f"{url}/v1/chat/completions", json.dumps(OTHERS).encode())
            urlopen(asked, timeout=60).read()

    thread = Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def photograph(page: Page, to: Path) -> None:
    page.until(lambda: "context" in page.at("#model").text)
    for name, value in SETTINGS.items():
        page.set(name, value)
    page.at("#settings-toggle").click()
    for conversation in QUESTIONS:
        page.at("#new").click()
        for question in conversation:
            page.at("#message").send_keys(question, ENTER)
            page.until(lambda: page.idle and all(page.texts("article.assistant .note")))
    page.at("h1").click()  # no button shall look pointed at
    time.sleep(2.5)  # the machine is looked at once a second
    page.driver.save_screenshot(str(to))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "images" / "page.png")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as profile, server() as url, chromium(Path(profile)) as driver:
        driver.set_window_size(*SIZE)
        page = Page(driver, url)
        page.show_in(asked.scheme)
        with others(url):
            photograph(page, asked.to)


if __name__ == "__main__":
    main()
