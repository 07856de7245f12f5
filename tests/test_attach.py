"""dali.attach: model.generate goes on as before, without the experts' parameters."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import dali
from dali.errors import DaliError, UsageError
from dali.hooks.seam import experts_modules
from families import COMMON, FAMILIES, random_model

LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "head_dim": 16,
}


def generate(model) -> torch.Tensor:
    """Greedy tokens of a padded batch and its prompts: [2, 21]."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 97, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    ids[0, :4] = mask[0, :4] = 0
    return model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_gives_the_same_tokens(family):
    model = random_model(family)
    expected = generate(model)
    attached = dali.attach(model, quant="f32")
    assert attached is model
    assert torch.equal(generate(attached), expected)


def test_layers_the_engine_cannot_step_can_be_attached():
    """What dali.load advises for models with linear attention."""
    config = CONFIG_MAPPING["qwen3_next"](
        **COMMON | LINEAR_ATTENTION,
        moe_intermediate_size=40,
        shared_expert_intermediate_size=40,
        num_experts=4,
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    expected = generate(model)
    assert torch.equal(generate(dali.attach(model, quant="f32")), expected)


def test_experts_of_another_format_are_used():
    """w4 changes tiny logits by a lot: were the stock experts still there, they would not move."""
    model = random_model("qwen3_moe")
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        before = model(ids).logits
        after = dali.attach(model, quant="w4")(ids).logits
    assert (after - before).norm() > 0.01 * before.norm()


def test_the_parameters_are_gone():
    model = random_model("gpt_oss")
    modules = experts_modules(model)
    expert_bytes = sum(p.nbytes for module in modules.values() for p in module.parameters())
    parameters = [weakref.ref(p) for module in modules.values() for p in module.parameters()]
    before = sum(p.nbytes for p in model.parameters())
    dali.attach(model)
    gc.collect()
    assert [p() for p in parameters] == [None] * 3 * 4
    assert sum(p.nbytes for p in model.parameters()) == before - expert_bytes
    assert not [name for name in model.state_dict() if ".experts." in name]


def test_save_pretrained_is_refused(tmp_path):
    model = dali.attach(random_model("mixtral"))
    with pytest.raises(DaliError, match="without its experts"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dense_model_is_refused():
    dense = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**COMMON, intermediate_size=40))
    with pytest.raises(DaliError, match="LlamaForCausalLM is not a Mixture-of-Experts model"):
        dali.attach(dense)


def test_an_unknown_format_is_refused():
    model = random_model("mixtral")
    expected = generate(model)
    for quant in ("w5", "auto"):
        with pytest.raises(UsageError, match=repr(quant)):
            dali.attach(model, quant=quant)
    assert torch.equal(generate(model), expected)


def test_weights_that_are_not_finite_are_refused():
    model = random_model("mixtral")
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj[2, 3, 4] = float("nan")
    with pytest.raises(DaliError, match="NaN"):
        dali.attach(model)


def test_attaching_twice_is_refused():
    model = dali.attach(random_model("mixtral"))
    expected = generate(model)
    with pytest.raises(DaliError, match="already"):
        dali.attach(model)
    assert torch.equal(generate(model), expected)


def test_a_model_that_asks_for_dali_without_its_experts():
    model = random_model("mixtral")
    model.set_experts_implementation("dali")
    with pytest.raises(DaliError, match="no dali experts"):
        generate(model)


def test_switching_back_is_refused():
    model = dali.attach(random_model("mixtral"))
    with pytest.raises(DaliError, match="'eager'"):
        model.set_experts_implementation("eager")
    generate(model)


def test_a_weight_the_format_cannot_hold_names_its_expert():
    model = random_model("mixtral")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[3, 0, 0] = float("nan")
    with pytest.raises(DaliError, match="Expert 3 of MoE layer 1"):
        dali.attach(model)


def test_gradients_are_refused_as_soon_as_they_are_asked_for():
    """The graph would go on around the experts: right losses, wrong gradients."""
    model = dali.attach(random_model("qwen3_moe"), quant="f32")
    ids = torch.arange(3, 20)[None]
    loss = model(ids, labels=ids).loss  # as such a loss is fine
    with pytest.raises(DaliError, match="no gradients"):
        loss.backward()


def test_gradients_around_the_experts_are_refused_too():
    """Only what lies before the last experts is wrong, and only one parameter there wants a gradient."""
    model = dali.attach(random_model("qwen3_moe").requires_grad_(False), quant="f32")
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_()
    ids = torch.arange(3, 20)[None]
    with pytest.raises(DaliError, match="no gradients"):
        model(ids, labels=ids).loss.backward()


def test_what_follows_the_experts_can_be_trained():
    def gradient(model) -> torch.Tensor:
        model.requires_grad_(False)
        model.lm_head.weight.requires_grad_()
        ids = torch.arange(3, 20)[None]
        model(ids, labels=ids).loss.backward()
        return model.lm_head.weight.grad

    expected = gradient(random_model("qwen3_moe"))
    found = gradient(dali.attach(random_model("qwen3_moe"), quant="f32"))
    torch.testing.assert_close(found, expected)


def offloaded(model):
    model.model.layers[1].mlp.experts.to("meta")


def in_float64(model):
    model.double()


def in_float8(model):
    for layer in model.model.layers:
        for name, parameter in list(layer.mlp.experts.named_parameters()):
            packed = torch.nn.Parameter(parameter.to(torch.float8_e4m3fn), requires_grad=False)
            setattr(layer.mlp.experts, name, packed)


@pytest.mark.parametrize(
    ("change", "why"), [(offloaded, "not in memory"), (in_float64, "float64"), (in_float8, "float8_e4m3fn")]
)
def test_what_cannot_be_packed_is_refused_before_anything_is_freed(change, why):
    model = random_model("qwen3_moe")
    change(model)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(DaliError, match=why):
        dali.attach(model)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


def test_an_attached_model_is_not_copied():
    model = dali.attach(random_model("qwen3_moe"))
    expected = generate(model)
    with pytest.raises(DaliError, match="neither copied nor pickled"):
        copy.deepcopy(model)
    assert torch.equal(generate(model), expected)


def test_what_is_no_transformers_model_is_refused():
    with pytest.raises(DaliError, match="Linear has no routed experts"):
        dali.attach(torch.nn.Linear(2, 2))
