"""Models that decode without transformers' forward: which ones do, that not a bit changes, and what makes them step aside."""

from __future__ import annotations

import threading

import pytest
import torch
from test_decode import decoded, load

from dali.engine.decoding_model import DecodingModel, fuse_model
from dali.engine.single_thread import single_thread
from dali.kernels import native
from families import FAMILIES, random_model

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
WHOLE = {"mixtral", "qwen3_moe", "olmoe"}  # all of whose layers decode in one call


def watch(llm, monkeypatch) -> list[int]:
    """The steps that run without transformers' forward."""
    steps: list[int] = []
    plain = llm.model.forward.decode

    def decode(step, **keywords):
        steps.append(len(step.segments))
        return plain(step, **keywords)

    monkeypatch.setattr(llm.model.forward, "decode", decode)
    return steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_not_a_bit_changes(tmp_path, monkeypatch, family, dtype):
    llm = load(tmp_path, monkeypatch, random_model(family, dtype=dtype))
    fused = llm.model.forward
    assert isinstance(fused, DecodingModel) == (family in WHOLE)
    assert not llm.telemetry.layers  # the probe left nothing
    if family in WHOLE:
        steps = watch(llm, monkeypatch)
        found = decoded(llm)
        assert 0 < len(steps) < len(found)  # prompts go the other way
        llm.model.forward = fused.plain
        assert all(map(torch.equal, found, decoded(llm)))


def test_a_layer_of_another_kind_keeps_the_models_forward(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("qwen3_moe", mlp_only_layers=[1]))
    assert not isinstance(llm.model.forward, DecodingModel)


def test_a_forward_that_does_more_is_kept(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    plain = llm.model.forward.plain

    def scaled(**keywords):
        out = plain(**keywords)
        out.logits = out.logits * 0.5
        return out

    llm.model.forward = scaled
    fuse_model(llm.model)
    assert llm.model.forward is scaled
    assert not llm.telemetry.layers


def test_who_watches_the_model_inside_sees_it(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    expected = decoded(llm)
    seen: list[int] = []
    handle = llm.model.model.register_forward_hook(lambda *given: seen.append(1))
    assert all(map(torch.equal, decoded(llm), expected))
    assert len(seen) == len(expected)
    handle.remove()
    steps = watch(llm, monkeypatch)
    assert all(map(torch.equal, decoded(llm), expected))
    assert steps


def test_a_head_put_there_later_is_used(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    expected = decoded(llm)

    class Half(torch.nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, x):
            return self.head(x) * 0.5

    llm.model.lm_head = Half(llm.model.lm_head)
    steps = watch(llm, monkeypatch)
    assert all(torch.equal(found, logits * 0.5) for found, logits in zip(decoded(llm), expected, strict=True))
    assert steps


def test_a_thread_that_began_meanwhile_does_not_keep_torch_to_itself():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        seen = []

        def other():
            with single_thread():
                seen.append(torch.get_num_threads())

        with single_thread():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert seen == [1]
        assert torch.get_num_threads() == 3
        fresh = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        fresh.start()
        fresh.join()
        assert seen == [1, 3]
    finally:
        torch.set_num_threads(before)


def test_torchs_threads_are_given_back(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        decoded(llm)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
