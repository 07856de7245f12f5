"""How fast is a served model, for how many clients at once, and what does serving cost beside the model?

    python benchmarks/serving/streams.py [--model MODEL] [--beside NAME=URL ...] [--streams 1 4 8] [--prompt 128] [--tokens 64]
                                         [--repeats 5] [--write NAME]

Each client is a stream of /v1/completions, greedy, whose prompt nobody else has, in a process of its own beside the server's.
`--beside` names servers that run already, such as llama-server on the same GGUF file; all take turns, repeat by repeat. Figures
are medians of the repeats: tokens a second of all streams together, from the first request to the last token; the time to a
stream's first token, the 95th percentile of a repeat. For dali also what its stepping thread does between two steps: wall-clock,
and seconds of the processor, which other programs on the machine do not lengthen; and the processor's time that the event loop
takes a token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import dali
import report
from dali.serve.app import make_app
from dali.serve.options import ServeOptions
from dali.serve.server import Server
from dali.serve.service import Service
from dali.serve.serving import Serving

WORDS = "the dog cat tree river boat house rain sun wind big old red blue runs sees likes finds and but so".split()  # noqa: SIM905


class Watched:
    """What the stepping thread and the event loop do, of a model that is served in this process."""

    def __init__(self, llm: dali.LLM) -> None:
        self.gaps: list[tuple[float, float]] = []  # wall-clock and processor seconds between two steps
        self._step, self._ended = llm.loop.step, (0.0, 0.0)
        llm.loop.step = self._timed  # type: ignore[method-assign]

    def _timed(self) -> None:
        began, (wall, cpu) = (time.perf_counter(), time.thread_time()), self._ended
        if wall:
            self.gaps.append((began[0] - wall, began[1] - cpu))
        self._step()
        self._ended = time.perf_counter(), time.thread_time()

    def begin(self) -> None:
        self.gaps, self._ended = [], (0.0, 0.0)

    def rates(self) -> dict[str, float]:
        wall, cpu = zip(*self.gaps, strict=True)
        return {"beside_ms": 1e3 * statistics.median(wall), "beside_cpu_ms": 1e3 * statistics.mean(cpu)}


def event_loop_seconds() -> float:
    """Of the processor, so far (Linux)."""
    thread = next(thread for thread in threading.enumerate() if thread.name == "dali-http")
    spent = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]
    return int(spent) / 1e9


@contextmanager
def serving(model: str | None, streams: int) -> Iterator[tuple[str, Watched]]:
    options = ServeOptions(port=0, parallel=streams)
    host = Serving(options)
    server = Server(make_app(host), options)
    server.start()
    with dali.load(model) if model else dali.load() as llm:
        watched = Watched(llm)
        service = Service(llm, options.parallel, options.queue)
        host.open(service)
        yield server.url, watched
        service.stop(0)
        server.stop()


def prompt(words: int, seed: int) -> str:
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(words))


async def stream(http: httpx2.AsyncClient, text: str, tokens: int) -> tuple[float, int]:
    """(seconds to the first token, tokens)"""
    body = {
        "prompt": text, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True, "cache_prompt": False,
    }  # fmt: skip
    began, first, count = time.perf_counter(), 0.0, 0
    async with http.stream("POST", "/v1/completions", json=body, timeout=600) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - began
                timings = json.loads(line.removeprefix("data: ")).get("timings")
                count = timings["predicted_n"] if timings else count
    return first, count


async def client(url: str, streams: int, words: int, tokens: int, seed: int) -> None:
    """All streams at once; prints what came of them."""
    async with httpx2.AsyncClient(base_url=url) as http:
        began = time.perf_counter()
        found = await asyncio.gather(
            *(stream(http, prompt(words, seed * 100 + at), tokens) for at in range(streams))
        )
        seconds = time.perf_counter() - began
    print(
        json.dumps(
            {"seconds": seconds, "firsts": [first for first, _ in found], "tokens": sum(n for _, n in found)}
        )
    )


def ask(url: str, *arguments: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--client", url, *map(str, arguments)]
    answer: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return answer


def measure(servers: dict[str, str], watched: Watched, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for streams in arguments.streams:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for repeat in range(arguments.repeats + 1):
            for name, url in servers.items():
                watched.begin()
                spent = event_loop_seconds()
                answer = ask(url, streams, arguments.prompt, arguments.tokens, repeat * 10 + streams)
                ours = name == "dali"
                each = (
                    {"loop_us_a_token": 1e6 * (event_loop_seconds() - spent) / answer["tokens"]}
                    if ours
                    else {}
                )
                firsts = sorted(answer["firsts"])
                found[name].append(
                    {
                        "tokens_per_second": answer["tokens"] / answer["seconds"],
                        "first_token_p95": firsts[max(0, -(-95 * len(firsts) // 100) - 1)],
                    }
                    | (watched.rates() if ours else {})
                    | each
                )
        for name, repeats in found.items():
            figures = {
                key: statistics.median(one[key] for one in repeats[1:]) for key in repeats[0]
            }  # the first warms up
            rows.append({"server": name, "streams": streams} | figures)
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        streams, words, tokens, seed = map(int, sys.argv[3:])
        asyncio.run(client(sys.argv[2], streams, words, tokens, seed))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--beside", nargs="*", default=[], metavar="NAME=URL")
    parser.add_argument("--streams", nargs="*", type=int, default=[1, 4, 8])
    parser.add_argument("--prompt", type=int, default=128, help="words of each prompt, most of them a token")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", metavar="NAME", help="keep the rows in benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    with serving(arguments.model, max(arguments.streams)) as (url, watched):
        servers = {"dali": url} | dict(one.split("=", 1) for one in arguments.beside)
        rows = measure(servers, watched, arguments)
    keys = list(rows[0])
    report.table([{key: row.get(key, "") for key in keys} for row in rows])
    if arguments.write:
        report.write(arguments.write, rows)


if __name__ == "__main__":
    main()
