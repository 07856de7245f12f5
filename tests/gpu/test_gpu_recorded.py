"""Routing over a GPU is recorded as on the CPU, on a stand-in for its driver."""

from __future__ import annotations

import numpy as np
import pytest
from test_gpu_model import PROMPTS, directory, load
from test_gpu_torch import over_gpu, plain

import dali
from dali.measure.recorder import record

__all__ = ["directory"]
GREEDY = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}


@pytest.mark.parametrize("by", ["kernels", "torch"])
def test_routing_scores_weights_and_gate_inputs_are_those_of_the_cpu(driver, directory, monkeypatch, by):
    if by == "torch":  # computes all but the experts
        monkeypatch.setattr("dali.offload.build.gpu_model", lambda gpu, loaded, decoder: None)
    cpu = dali.load(directory, quant="w4") if by == "kernels" else plain(directory)
    trace = record(cpu, PROMPTS, batch=2, hidden=True, **GREEDY)
    llm = load(directory) if by == "kernels" else over_gpu(directory)
    before = llm.engine.decoder
    llm.generate(PROMPTS[0], **GREEDY)  # by the compiled planner
    monkeypatch.setattr(llm.executor, "most_tokens", 4)  # a prompt is more than one piece
    found = record(llm, PROMPTS, batch=2, hidden=True, **GREEDY)
    assert driver.races == []
    assert llm.engine.decoder is before
    assert np.array_equal(found.ids, trace.ids)
    assert np.array_equal(found.phase, trace.phase)
    for name in ("weights", "scores", "gate_inputs", "embeddings"):
        one, other = getattr(found, name), getattr(trace, name)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert found.predicted.keys() == trace.predicted.keys()
    assert llm.generate(PROMPTS[1], **GREEDY).tokens
    llm.close()
