"""Does a server that is asked without pause keep its memory, its files and its threads?

    python benchmarks/serving/soak.py [--minutes 10] [--streams 8] [--seed 0] [--model MODEL]

`dali serve` runs in a process of its own, with a prefix cache in RAM and on disk so small that both are full before the first
sample counts. Each stream asks one request after the other: by all protocols, whole and streamed, with prompts whose beginning
others share and with ones that nobody has asked, some behind the whole prompt of an earlier one; one in five clients leaves at a
random moment, one in ten sends something of benchmarks/tools/fuzz_serve.py. Every two seconds the server's memory (RSS), open
files, threads and answers under way are looked at. Drift is what a line through all samples after the warm-up rises by from its
beginning to its end, in percent. The script exits with 1 where memory drifts by more than 2 %, files or threads by that and more
than one, where a request failed, or where anything is left under way in the end.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import fuzz_serve
import report
from fuzz_serve import FUNCTION, Sent

EACH = 2.0  # seconds from one sample to the next
MOST = 2.0  # percent
WARM = 60.0  # seconds, or a quarter of the time where that is less
CACHE_RAM, CACHE_DISK = 16 << 20, 64 << 20
WORDS = "the dog cat tree river boat house rain sun wind big old red blue runs sees likes finds and but so".split()  # noqa: SIM905
SHARED = " ".join(Random(0).choice(WORDS) for _ in range(150))


class Server:
    """`dali serve`, and what can be seen of it from outside (Linux)."""

    def __init__(self, process: subprocess.Popen[str], url: str, folder: Path) -> None:
        self.process, self.url, self.folder = process, url, folder
        host, port = url.removeprefix("http://").split(":")
        self.address = host, int(port)

    def sample(self) -> dict[str, float]:
        own = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (own / "status").read_text().splitlines())
        stats = self.stats()
        return {
            "rss": int(status["VmRSS"].split()[0]) * 1024,
            "files": len(list((own / "fd").iterdir())),
            "threads": int(status["Threads"]),
            "running": stats["running"],
            "waiting": stats["waiting"],
            "cache_ram": stats["experts"]["prefixes"]["bytes"],
            "cache_disk": bytes_of(self.folder),
        }

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/v1/stats", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def bytes_of(folder: Path) -> int:
    """Of all its files, which come and go."""
    found = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


@contextmanager
def serving(model: str | None, folder: Path) -> Iterator[Server]:
    command = [
        sys.executable, "-m", "dali", "serve", *([model] if model else []), "--port", "0", "--queue", "64", "--predict", "64",
        "--cache-ram", str(CACHE_RAM), "--cache-dir", str(folder), "--cache-disk", str(CACHE_DISK),
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said, url = "", None
        while url is None:
            line = process.stderr.readline()
            said += line
            url = re.search(r"at (http://\S+)", line)
            if not line:
                raise SystemExit(f"The server ended: {said}")
        threading.Thread(target=_pass_on, args=(process.stderr,), daemon=True).start()
        try:
            yield Server(process, url[1], folder)
        finally:
            process.terminate()


def _pass_on(lines: Any) -> None:
    for line in lines:
        print(f"server: {line}", end="", file=sys.stderr)


def request(random: Random, earlier: list[str]) -> Sent:
    """What a client asks that has asked `earlier` prompts."""
    text = " ".join(random.choice(WORDS) for _ in range(random.choice((3, 20, 80))))
    chance = random.random()
    if chance < 0.4:
        text = f"{SHARED} {text}"
    elif chance < 0.6 and earlier:
        text = f"{random.choice(earlier)} {text}"
    text = text[-1500:]
    earlier.append(text)
    del earlier[:-20]
    most, streams = random.choice((1, 8, 40)), random.random() < 0.6
    messages = [{"role": "user", "content": text}]
    seed = {"seed": random.randrange(2**31)}
    path, body = random.choice(
        [
            ("/v1/completions", {"prompt": text, "max_tokens": most, "n": random.choice((1, 2))} | seed),
            ("/v1/chat/completions", {"messages": messages, "max_tokens": most} | seed),
            (
                "/v1/chat/completions",
                {
                    "messages": messages,
                    "max_tokens": most,
                    "tools": [{"type": "function", "function": FUNCTION}],
                },
            ),
            ("/v1/responses", {"input": text, "max_output_tokens": most}),
            ("/v1/messages", {"messages": messages, "max_tokens": most}),
        ]
    )
    return Sent(path=path, body=json.dumps(body | {"stream": streams}).encode())


class Client:
    """One stream of requests."""

    def __init__(self, server: Server, seed: str, counts: Counter[str], end: float) -> None:
        self._server, self._random, self._counts, self._end = server, Random(seed), counts, end
        self._earlier: list[str] = []

    def run(self) -> None:
        while time.monotonic() < self._end:
            odd = self._random.random() < 0.1
            sent = fuzz_serve.request(self._random) if odd else request(self._random, self._earlier)
            if not odd and self._random.random() < 0.2:
                sent.leaves, sent.stays = True, self._random.random() ** 2
            found = fuzz_serve.answer(self._server.address, sent)
            if found not in fuzz_serve.OUTCOMES:
                print(f"{sent!r:.600}\n  {found}", file=sys.stderr, flush=True)
                found = "failed"
            self._counts[found] += 1


def drift(values: list[float]) -> float:
    """Percent that a line through them rises by."""
    slope, begin = statistics.linear_regression(range(len(values)), values)
    return 100 * slope * (len(values) - 1) / begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model")
    parser.add_argument("--samples", action="store_true", help="print each sample")
    arguments = parser.parse_args()
    seconds = 60 * arguments.minutes
    counts: Counter[str] = Counter(dict.fromkeys((*fuzz_serve.OUTCOMES, "failed"), 0))
    with tempfile.TemporaryDirectory() as folder, serving(arguments.model, Path(folder)) as server:
        began = time.monotonic()
        clients = [
            Client(server, f"{arguments.seed} {number}", counts, began + seconds)
            for number in range(arguments.streams)
        ]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        samples = []
        while any(thread.is_alive() for thread in threads):
            time.sleep(EACH)
            samples.append({"seconds": time.monotonic() - began} | server.sample())
            if arguments.samples:
                print(json.dumps(samples[-1]), flush=True)
        time.sleep(1)
        left = server.sample()
        tokens = server.stats()["generated_tokens"]
    warm = [sample for sample in samples if min(WARM, seconds / 4) <= sample["seconds"] <= seconds]
    row: dict[str, Any] = {"minutes": arguments.minutes, "streams": arguments.streams, "samples": len(warm)}
    row |= dict(counts) | {"tokens": tokens}
    row["rss_mb"] = statistics.median(sample["rss"] for sample in warm) / 1e6
    for what in ("rss", "files", "threads"):
        row[f"{what} drift %"] = drift([sample[what] for sample in warm])
    row["most cache_ram %"] = 100 * max(sample["cache_ram"] for sample in samples) / CACHE_RAM
    row["most cache_disk %"] = 100 * max(sample["cache_disk"] for sample in samples) / CACHE_DISK
    row["left under way"] = left["running"] + left["waiting"]
    report.table([row])
    report.write("soak", [row], seed=arguments.seed)
    broken = [
        what
        for what, one in (("rss", 0), ("files", 1), ("threads", 1))
        if row[f"{what} drift %"] > max(MOST, 100 * one / statistics.median(sample[what] for sample in warm))
    ]
    broken += [what for what in ("failed", "left under way") if row[what]]
    broken += [what for what in ("cache_ram", "cache_disk") if row[f"most {what} %"] > 100 * (1 + 1 / 8)]
    if broken:
        raise SystemExit(f"Not as it should be: {', '.join(broken)}")


if __name__ == "__main__":
    main()
