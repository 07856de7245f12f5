"""Recorded routing is what the model's routers answered."""

import numpy as np
import pytest
import torch

import dali
from dali.errors import UsageError
from dali.hooks import seam
from dali.measure.recorder import record
from dali.replay.steps import forwards
from dali.replay.traces.trace import read, write

PROMPTS = ["Once upon a time", "Once upon a time there was a fox", "The king"]
GREEDY = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield dali.load(quant="w8", dtype="float32", ram="4GiB")


@pytest.fixture(scope="module")
def trace(llm):
    return record(llm, PROMPTS, batch=2, hidden=True, **GREEDY)


def test_every_token_but_the_last_sampled_one_is_there(llm, trace):
    lengths = [len(llm.encode(prompt)) + 5 for prompt in PROMPTS]
    assert np.diff(trace.seq_ptr).tolist() == lengths  # prompts that share their beginning too
    assert (trace.phase == 1).sum() == 15
    assert (trace.layers, trace.experts, trace.top_k) == (8, 20, 4)
    assert sum(len(step.rows) for step in forwards(trace, 1)) == sum(lengths)


def test_batches_do_not_change_the_routing(llm, trace):
    alone = record(llm, PROMPTS, **GREEDY)
    assert np.array_equal(alone.ids, trace.ids)
    assert np.array_equal(alone.seq_ptr, trace.seq_ptr)
    assert (alone.gate_inputs, alone.embeddings, alone.predicted) == (None, None, {})


def test_scores_and_weights_belong_to_the_chosen(trace):
    best = np.sort(trace.scores, axis=2)[..., -trace.top_k :].sum(axis=2)
    chosen = np.take_along_axis(trace.scores, trace.ids.astype(int), axis=2)
    assert np.allclose(trace.scores.sum(axis=2), 1, atol=1e-2)
    assert np.allclose(chosen.sum(axis=2), best, atol=1e-2)
    assert np.allclose(trace.weights, chosen / chosen.sum(axis=2, keepdims=True), atol=1e-2)


@torch.inference_mode()
def test_gate_inputs_lead_the_routers_to_the_same_ids(llm, trace):
    router = seam.routers(llm.model, llm.layout.shape.hidden)[5]
    ids = router(torch.from_numpy(trace.gate_inputs[:, 5].astype(np.float32)))[2].numpy()
    assert np.mean(np.sort(ids, axis=1) == np.sort(trace.ids[:, 5], axis=1)) > 0.99
    assert trace.embeddings.shape == (trace.tokens, llm.model.config.hidden_size)


def test_predictions_are_better_than_chance(trace):
    assert set(trace.predicted) == {("next_gate", d) for d in (1, 2, 3, 4)} | {("residual", 1)} | {
        *(("ridge", d) for d in (1, 2, 3)),
        ("next_router", 1),
    }
    for (_, ahead), ids in trace.predicted.items():
        found = ids[:, :-ahead, :, None] == trace.ids[:, ahead:, None, :]
        assert found.any(axis=3).mean() > 2 * trace.top_k / trace.experts


def test_it_reads_back(trace, tmp_path):
    write(tmp_path / "t.npz", trace)
    back = read(tmp_path / "t.npz")
    assert np.array_equal(back.ids, trace.ids)
    assert back.meta["shape"]["hidden"] == 192


def test_a_bad_prompt_leaves_the_engine_usable(llm):
    with pytest.raises(UsageError, match="empty"):
        record(llm, ["The king", []], **GREEDY)
    assert llm.generate("The king", **GREEDY).tokens
