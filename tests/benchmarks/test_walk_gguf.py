"""Models whose tokens and experts are decided in advance: dali goes where the walk says, with nothing hooked into it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "tools"))
import dali
import walk_gguf
from dali.measure.recorder import record

SHAPE = walk_gguf.Shape(layers=3, experts=8, top_k=2, hidden=128, intermediate=64, vocabulary=400, heads=4)


@pytest.fixture(scope="module", params=["Q8_0", "Q4_0"])
def llm(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("walk") / "walk.gguf"
    walks = [walk_gguf.uniform(12, SHAPE, 0), walk_gguf.uniform(20, SHAPE, 1)]
    walk_gguf.write_walks(path, walk_gguf.Type[request.param], walks, SHAPE)
    return dali.load(path), walks


def test_greedy_decoding_walks_along(llm):
    llm, walks = llm
    first, second = walk_gguf.tokens_of(walks)
    answer = llm.generate([*second, first[0]], max_tokens=12, temperature=0, ignore_eos=True)
    assert answer.tokens == [*first[1:], first[0]]
    assert answer.text.split() == [str(token) for token in answer.tokens]


def test_tokens_go_to_the_experts_of_their_walk(llm):
    llm, walks = llm
    first = walk_gguf.tokens_of(walks)[0]
    trace = record(llm, [first[:1]], max_tokens=12, temperature=0, ignore_eos=True)
    assert np.array_equal(np.sort(trace.ids[:12], axis=2), np.sort(walks[0], axis=2))


def test_a_layer_early_a_part_of_them_is_known():
    wanted = walk_gguf.wanted_of(walk_gguf.uniform(500, SHAPE, 3), SHAPE)
    added = walk_gguf.added_by_attention(wanted, SHAPE)
    assert walk_gguf.known(wanted, np.zeros_like(added), SHAPE) == 1
    assert walk_gguf.known(wanted, added, SHAPE) == pytest.approx(walk_gguf.KNOWN, abs=0.02)


def test_tokens_that_nobody_could_tell_apart_are_refused(tmp_path):
    walk = np.repeat(walk_gguf.uniform(1, SHAPE, 0), 2, axis=0)
    with pytest.raises(AssertionError, match="cannot be told apart"):
        walk_gguf.write_walks(tmp_path / "m.gguf", walk_gguf.Type.Q8_0, [walk], SHAPE)
