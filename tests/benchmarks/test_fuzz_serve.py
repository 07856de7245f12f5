"""A few of the requests of benchmarks/tools/fuzz_serve.py, which sends thousands, and of benchmarks/serving/soak.py."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from served import Served, served

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "tools"))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "serving"))
import fuzz_serve
import soak
from fuzz_serve import OUTCOMES, SOUND, Sent, answer


def address(server: Served) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


@pytest.fixture(scope="module")
def tiny(dali_tiny, tmp_path_factory):
    import dali

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        with dali.load(str(dali_tiny)) as llm, served(llm) as found:
            llm.defaults["max_tokens"] = 4
            yield found


def test_odd_requests_are_answered_or_refused(tiny):
    row = fuzz_serve.run(address(tiny), tiny.service, 250, 7)
    assert (row["failed"], row["left under way"]) == (0, 0)
    assert min(row["answered"], row["refused"]) > 30


@pytest.mark.parametrize("path", SOUND)
def test_what_is_sound_is_answered(tiny, path):
    for body in SOUND[path]:
        found = answer(address(tiny), Sent(path=path, body=json.dumps(body).encode()))
        assert found == ("refused" if path == "/v1/embeddings" else "answered")


def test_failures_are_seen(tiny, monkeypatch):
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(tiny.service, "_check_room", fail)
    sent = Sent(body=json.dumps(SOUND["/v1/chat/completions"][0]).encode())
    assert "status 500" in answer(address(tiny), sent)


def test_a_stream_of_requests_is_answered(tiny):
    counts: Counter[str] = Counter()
    server = soak.Server(None, tiny.url, Path())  # type: ignore[arg-type]
    soak.Client(server, "0", counts, time.monotonic() + 1).run()
    assert {*counts} <= {*OUTCOMES}
    assert counts["answered"] > 0


def test_drift_is_what_a_line_rises_by():
    assert soak.drift([100, 101, 102, 103, 104]) == pytest.approx(4)
    assert soak.drift([50] * 9) == 0
    noise = Random(0)
    assert abs(soak.drift([1000 + noise.random() for _ in range(99)])) < 0.1
