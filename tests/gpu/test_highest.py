"""Choosing among the highest logits that the GPU has found."""

from __future__ import annotations

import pytest
import torch
from test_gpu_model import PROMPTS, load

import dali
from families import random_model, save_model

SAMPLED = [
    {"temperature": 0},
    {"temperature": 0.9, "top_k": 5, "seed": 3},
    {"temperature": 1.3, "top_k": 64, "top_p": 0.9, "seed": 4},
]
BEYOND = [
    {"temperature": 1.0, "top_k": 0, "seed": 5},  # all of them
    {"temperature": 1.0, "top_k": 65, "seed": 6},
    {"temperature": 0, "repeat_penalty": 1.3},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_model(random_model("olmoe", dtype=torch.bfloat16), tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("sampling", "found"), [(s, True) for s in SAMPLED] + [(s, False) for s in BEYOND])
def test_the_tokens_are_the_cpus_and_few_logits_come_down(driver, directory, sampling, found, monkeypatch):
    wanted = {"max_tokens": 6, "ignore_eos": True} | sampling
    expected = [answer.tokens for answer in dali.load(directory, quant="w4").generate(PROMPTS, **wanted)]
    llm = load(directory)
    plain, known = llm.engine.decoder.highest, []

    def highest(row, most):
        known.append(plain(row, most))
        return known[-1]

    monkeypatch.setattr(type(llm.engine.decoder), "highest", staticmethod(highest))
    assert [answer.tokens for answer in llm.generate(PROMPTS, **wanted)] == expected
    assert (len(known) == 6 * len(PROMPTS) and all(one is not None for one in known)) == found
    assert driver.races == []
