"""dali on a real GPU: kernels bit for bit as the CPU's, whole models as near as rounding allows, calibration, attach."""

from __future__ import annotations

import gc
from unittest.mock import patch

import pytest
import torch
from one_layer import OneLayer, differing, random_records, random_step

import dali
from dali.devices.cuda import Gpu
from dali.errors import DaliError
from dali.kernels import native
from dali.kernels.activation import KINDS, Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import FORMATS, get_format
from dali.kernels.gpu.compiler import cubin
from dali.store.cache import cache_root
from families import FAMILIES, random_model, save_model, save_mxfp4_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(not native.enabled(), reason="dali's library is not built"),
]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [40]]
# Of log probabilities. Linears, norms and attention are torch's, which sums in other orders on a GPU: through 3 layers that makes
# some 1e-5 (inputs changed in their last bits make as much on the CPU). Where activations are rounded to int8 between, a value
# may fall to the other side; and in bfloat16 sums are rounded anew. A layer's experts are compared without any tolerance.
FLOATS, ROUNDED = 2e-3, 0.1


@pytest.fixture(scope="module")
def gpu():
    torch.zeros(1, device="cuda")
    return Gpu("cuda")


@pytest.fixture(scope="module")
def cubins():
    """Where compiled kernels are kept for all tests here."""
    return cache_root() / "cubins"


@pytest.fixture(scope="module")
def build(gpu, cubins):
    return lambda name, macros: cubin(name, macros, gpu.sm, cubins)


@pytest.fixture
def kept_cubins(cubins, monkeypatch):
    """Models do not compile them anew, though their cache is empty."""
    monkeypatch.setattr("dali.offload.gpu.cubin", lambda name, macros, sm, _: cubin(name, macros, sm, cubins))


@pytest.fixture(autouse=True)
def empty_cache(cubins, monkeypatch, tmp_path):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_the_cpus_bits(gpu, build, format, dtype):
    layout = ExpertLayout(ExpertShape(256, 96, Activation("silu")), get_format(format))
    layer = OneLayer(gpu, build, layout, random_records(layout, 8), 3, dtype)
    for tokens in (1, 3, 8, 9, 64):
        step = random_step(layer, tokens, 3, tokens)
        active = sorted(set(step[1].flatten().tolist()))
        for cpu in ((), active[::2], active):
            assert differing(layer.step(*step, cpu=cpu), layer.expected(*step)) == 0, (tokens, cpu)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_and_biases_give_the_cpus_bits(gpu, build, kind):
    activation = Activation(kind, 1.702, 7.0) if kind == "clamped_swiglu" else Activation(kind)
    layout = ExpertLayout(ExpertShape(64, 48, activation, biased=True), get_format("w8"))
    layer = OneLayer(gpu, build, layout, random_records(layout, 8), 3)
    step = random_step(layer, 5, 3, 1)
    assert differing(layer.step(*step), layer.expected(*step)) == 0


@pytest.mark.parametrize("hidden", [40, 300, 2048])
def test_odd_and_large_sizes_give_the_cpus_bits(gpu, build, hidden):
    layout = ExpertLayout(ExpertShape(hidden, 130, Activation("silu")), get_format("w4"))
    layer = OneLayer(gpu, build, layout, random_records(layout, 6), 2)
    for tokens in (1, 17):
        step = random_step(layer, tokens, 2, tokens)
        assert differing(layer.step(*step), layer.expected(*step)) == 0


def log_probabilities(llm) -> list[list[float]]:
    found = llm.generate(PROMPTS, temperature=0, max_tokens=1, ignore_eos=True, logprobs=5)
    return [[value for _, value in answer.logprobs[0].top] for answer in found]


def compare(directory, tolerance: float = FLOATS, **options) -> None:
    """The GPU's log probabilities against the CPU's, first with all experts there and then with few."""
    with patch("dali.fused.fuse", lambda model, linears: None):  # the CPU's linears would be packed
        llm = dali.load(directory, **options)
    expected = log_probabilities(llm)
    llm.close()
    for vram in ({}, {"vram": "200KiB"}):
        llm = dali.load(directory, device="cuda", **options, **vram)
        for found, wanted in zip(log_probabilities(llm), expected, strict=True):
            assert found == pytest.approx(wanted, abs=tolerance)
        llm.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_on_the_cpu(family, tmp_path, kept_cubins):
    compare(save_model(random_model(family), tmp_path / "model"), quant="f32")


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("mxfp4", "q4k")])
def test_models_of_every_format_answer_as_on_the_cpu(format, tmp_path, kept_cubins):
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64}
    model = save_model(random_model("qwen3_moe", **sizes), tmp_path / "model")
    compare(model, ROUNDED if get_format(format).quantized else FLOATS, quant=format)


def test_mxfp4_answers_as_on_the_cpu(tmp_path, kept_cubins):
    (tmp_path / "model").mkdir()
    compare(save_mxfp4_model(tmp_path / "model"), ROUNDED, quant="mxfp4")


def test_the_bundled_model_is_calibrated_anew_and_repeats_itself(dali_tiny):
    """Defaults, on an empty cache; every run, whatever the GPU's timing, gives the same tokens."""
    answers = []
    for _ in range(2):
        llm = dali.load(dali_tiny, device="cuda", vram="1MiB")
        prompt = "Once upon a time there was a little dog."
        answers.append(llm.generate(prompt, temperature=0, max_tokens=40).tokens)
        llm.close()
    assert answers[0] == answers[1]


def test_attach_serves_a_model_on_the_gpu():
    model = random_model("qwen3_moe")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.inference_mode():
        expected = model(ids).logits
        model = dali.attach(model.to("cuda"), quant="f32")
        found = model(ids.to("cuda")).logits.cpu()
    assert torch.allclose(found, expected, atol=2e-3)  # float32, summed in other orders


def test_a_closed_model_gives_the_memory_back(dali_tiny, gpu, kept_cubins):
    gc.collect()
    before = gpu.free_bytes()
    llm = dali.load(dali_tiny, device="cuda")
    llm.close()
    gc.collect()
    assert gpu.free_bytes() >= before - 64 * 2**20  # torch's and the libraries' own workspaces stay


def test_a_number_there_is_not_is_refused():
    with pytest.raises(DaliError, match="there are"):
        dali.load(device="cuda:63")
