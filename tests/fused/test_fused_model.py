"""Models that decode without transformers' forward: which ones do, that not a bit changes, and what makes them step aside."""

from __future__ import annotations

import pytest
import torch
from test_fused_attention import load

from dali.fused.attention import DecodingAttention
from dali.fused.layer import DecodingLayer
from dali.fused.model import Rotations, fuse_model
from dali.kernels import native
from decoded import decoded
from decoding_families import DECODING, OLDER, decoding_model
from families import FAMILIES, random_model

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
WHOLE = {
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "olmoe",
    "gpt_oss",
}  # all of whose layers decode in one call


def watch(llm, monkeypatch) -> list[int]:
    """The steps that run without transformers' forward: how many sequences each has."""
    steps: list[int] = []
    plain = llm.engine.decoder.decode

    def decode(step, *rows):
        steps.append(len(step.segments))
        return plain(step, *rows)

    monkeypatch.setattr(llm.engine.decoder, "decode", decode)
    return steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_not_a_bit_changes(tmp_path, monkeypatch, family, dtype):
    llm = load(tmp_path, monkeypatch, random_model(family, dtype=dtype))
    assert (llm.engine.decoder is not None) == (family in WHOLE)
    assert not llm.telemetry.layers  # the probe left nothing
    if family in WHOLE:
        steps = watch(llm, monkeypatch)
        natively = decoded(llm)
        assert 0 < len(steps) < len(natively)  # prompts go the other way
        llm.engine.decoder = None
        assert all(map(torch.equal, natively, decoded(llm)))


def test_not_a_bit_changes_with_blocks_of_rotations_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(Rotations, "BLOCK", 4)
    monkeypatch.setattr(Rotations, "MOST_BLOCKS", 1)
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    steps = watch(llm, monkeypatch)
    natively = decoded(llm)
    assert len(steps) > 4
    llm.engine.decoder = None
    assert all(map(torch.equal, natively, decoded(llm)))


def test_a_chunk_of_one_token_gives_logits_of_every_row_asked_for(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    steps = watch(llm, monkeypatch)
    llm.engine.scheduler.step_tokens = 1
    sequence = llm.sequence([5, 6, 7, 8], max_tokens=1)
    rows = torch.cat(list(llm.engine.score(sequence)))
    assert rows.shape == (4, llm.model.config.vocab_size)
    assert len(steps) == 4
    forward = llm.engine._forward
    shapes = []
    monkeypatch.setattr(llm.engine, "_forward", lambda plan: (shapes.append(forward(plan)), shapes[-1])[1])
    llm.generate([5, 6, 7], max_tokens=2, ignore_eos=True)
    assert [len(logits) for logits in shapes] == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", DECODING)
def test_families_whose_parts_are_all_known_decode_in_one_call(tmp_path, monkeypatch, family, dtype):
    llm = load(tmp_path, monkeypatch, decoding_model(family, dtype))
    steps = watch(llm, monkeypatch)
    natively = decoded(llm)
    assert steps
    llm.engine.decoder = None
    assert all(map(torch.equal, natively, decoded(llm)))
    run_as_written(llm)
    assert all(map(torch.equal, natively, decoded(llm)))


def run_as_written(llm) -> None:
    """But for gates of attention, which are native in all steps."""
    for module in llm.model.modules():
        while isinstance(module.forward, DecodingLayer | DecodingAttention) and not getattr(
            module.forward.native, "gated", False
        ):
            module.forward = module.forward.plain


def test_a_layer_of_another_kind_keeps_the_models_forward(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    layer = llm.model.model.layers[1]
    layer.forward = layer.forward.plain
    assert fuse_model(llm.model) is None


@pytest.mark.skipif(OLDER, reason="this transformers writes Granite's routers otherwise")
def test_a_scale_that_is_not_the_one_told_keeps_it(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, decoding_model("granitemoe"))
    llm.model.logits_scaling = 3.0
    assert fuse_model(llm.model) is None
    llm.model.logits_scaling = 6.0
    assert fuse_model(llm.model) is not None
    llm.model.model.embedding_multiplier = 3.0
    assert fuse_model(llm.model) is not None  # both ways read it


def test_rotations_that_depend_on_more_than_the_position_keep_it(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    llm.model.model.rotary_emb.rope_type = "dynamic"
    assert fuse_model(llm.model) is None


def test_a_forward_that_does_more_keeps_it(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    plain = llm.model.forward

    def scaled(**keywords):
        out = plain(**keywords)
        out.logits = out.logits * 0.5
        return out

    llm.model.forward = scaled
    assert fuse_model(llm.model) is None
    assert not llm.telemetry.layers
    steps = watch(llm, monkeypatch)
    decoded(llm)
    assert not steps  # put there later, it is seen as well


@pytest.mark.parametrize("watched", ["", "model", "model.layers.1.self_attn.q_proj", "lm_head"])
def test_who_watches_a_part_sees_it(tmp_path, monkeypatch, watched):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    expected = decoded(llm)
    seen: list[int] = []
    handle = llm.model.get_submodule(watched).register_forward_hook(lambda *given: seen.append(1))
    assert all(map(torch.equal, decoded(llm), expected))
    assert len(seen) == len(expected)
    handle.remove()
    steps = watch(llm, monkeypatch)
    assert all(map(torch.equal, decoded(llm), expected))
    assert steps


class Half(torch.nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x) * 0.5


def replace(name):
    def change(model):
        parent, _, child = name.rpartition(".")
        at = model.get_submodule(parent)
        setattr(at, child, Half(getattr(at, child)))

    return change


def wrap_forward(name):
    def change(model):
        module = model.get_submodule(name)
        plain = module.forward

        def forward(x=None, **keywords):
            out = plain(**keywords) if x is None else plain(x, **keywords)
            if isinstance(out, tuple):
                return out[0] * 0.5, *out[1:]
            if hasattr(out, "last_hidden_state"):
                out.last_hidden_state = out.last_hidden_state * 0.5
                return out
            return out * 0.5

        module.forward = forward

    return change


def renew_weight(name):
    def change(model):
        module = model.get_submodule(name)
        module.weight = torch.nn.Parameter(module.weight.detach() * 2 + 1)

    return change


def slow_down(model):
    model.model.rotary_emb.inv_freq *= 0.25


CHANGES = {
    "lm_head": replace("lm_head"),
    "norm": replace("model.norm"),
    "projection": replace("model.layers.1.self_attn.v_proj"),
    "norm of a layer": replace("model.layers.1.input_layernorm"),
    "forward of the stack": wrap_forward("model"),
    "forward of a layer": wrap_forward("model.layers.1"),
    "forward of attention": wrap_forward("model.layers.1.self_attn"),
    "forward of a projection": wrap_forward("model.layers.1.self_attn.o_proj"),
    "embeddings": renew_weight("model.embed_tokens"),
    "weight of a norm": renew_weight("model.layers.1.post_attention_layernorm"),
    "weight of the last norm": renew_weight("model.norm"),
    "frequencies": slow_down,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_changed_later_is_followed(tmp_path, monkeypatch, change):
    llm, plain = (load(tmp_path / name, monkeypatch, random_model("olmoe")) for name in "ab")
    run_as_written(plain)
    plain.engine.decoder = None
    before = decoded(llm)
    assert all(map(torch.equal, before, decoded(plain)))
    with torch.inference_mode():
        change(llm.model)
        change(plain.model)
    after = decoded(llm)
    assert all(map(torch.equal, after, decoded(plain)))
    assert not torch.equal(before[-1], after[-1])


def test_who_watches_all_modules_sees_them(tmp_path, monkeypatch):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    decoded(llm)
    seen: list[torch.nn.Module] = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: seen.append(module)
    )
    try:
        steps = decoded(llm)
    finally:
        handle.remove()
    for module in (llm.model.model.layers[1].self_attn.q_proj, llm.model.lm_head):
        assert seen.count(module) == len(steps)


@pytest.mark.parametrize("part", ["model.embed_tokens", "model.norm", "model.layers.1.input_layernorm"])
def test_weights_put_elsewhere_are_used(tmp_path, monkeypatch, part):
    llm = load(tmp_path, monkeypatch, random_model("olmoe"))
    before = decoded(llm)
    module = llm.model.get_submodule(part)
    module.weight.data = module.weight.data * 2 + 1
    steps = watch(llm, monkeypatch)
    after = decoded(llm)
    assert not steps
    assert not torch.equal(before[-1], after[-1])
