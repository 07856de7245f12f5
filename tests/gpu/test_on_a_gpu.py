"""dali on a real GPU: kernels and whole models bit for bit as the CPU's; what torch computes there as near as rounding allows;
calibration, attach."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress
from unittest.mock import patch

import pytest
import torch
from one_layer import OneLayer, differing, random_step
from test_gpu_families import family_model

import dali
from dali.devices.cuda import Gpu
from dali.errors import DaliError
from dali.kernels import native
from dali.kernels.activation import CLAMPED, KINDS, Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import FORMATS, get_format
from dali.kernels.gpu.compiler import cubin
from dali.offload.gpu import TEMPORARIES
from dali.offload.gpu_model import GpuModel
from dali.store.cache import cache_root
from decoded import decoded
from families import FAMILIES, random_model, save_model, save_mxfp4_model
from kernels.packed import random_records

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(not native.enabled(), reason="dali's library is not built"),
]
QUANTIZED = ("w8", "w4")  # by dali itself
WHOLE = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "glm4_moe", "granitemoe", "minimax_m2"]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [40]]
# Of log probabilities. Linears, norms and attention are torch's, which sums in other orders on a GPU: through 3 layers that makes
# some 1e-5 (inputs changed in their last bits make as much on the CPU). Where activations are rounded to int8 between, a value
# may fall to the other side; and in bfloat16 sums are rounded anew. A layer's experts are compared without any tolerance.
FLOATS, ROUNDED = 2e-3, 0.1
SLACK = 2**26  # bytes that torch and its libraries keep besides


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
    activation = Activation(kind, 1.702, 7.0) if kind in CLAMPED else Activation(kind)
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


def answer_as_the_cpu(directory, quant: str) -> None:
    """Logits of prompts and of decoding steps, whole models by dali's kernels: with all experts there and then with few."""
    llm = dali.load(directory, quant=quant)
    expected = decoded(llm)
    llm.close()
    for vram in ({}, {"vram": "300KiB"}):
        llm = dali.load(directory, quant=quant, device="cuda", notify=[].append, **vram)
        assert isinstance(llm.engine.decoder, GpuModel)
        found = decoded(llm)
        assert len(found) == len(expected)
        assert [int((one.cpu() != other).sum()) for one, other in zip(found, expected, strict=True)] == [
            0 for _ in expected
        ]
        llm.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("family", WHOLE)
def test_whole_models_give_the_cpus_bits(family, dtype, tmp_path, kept_cubins):
    answer_as_the_cpu(save_model(family_model(family, dtype), tmp_path / "model"), "w4")


@pytest.mark.parametrize("format", QUANTIZED)
def test_whole_models_of_every_format_give_the_cpus_bits(format, tmp_path, kept_cubins):
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64}
    answer_as_the_cpu(save_model(random_model("qwen3_moe", **sizes), tmp_path / "model"), format)


def test_mxfp4_gives_the_cpus_bits(tmp_path, kept_cubins):
    (tmp_path / "model").mkdir()
    answer_as_the_cpu(save_mxfp4_model(tmp_path / "model"), "mxfp4")


def log_probabilities(llm) -> list[list[float]]:
    found = llm.generate(PROMPTS, temperature=0, max_tokens=1, ignore_eos=True, logprobs=5)
    return [[value for _, value in answer.logprobs[0].top] for answer in found]


def compare(directory, tolerance: float = FLOATS, **options) -> None:
    """The log probabilities of a model whose dense part torch computes, on the GPU and on the CPU: first with all experts there
    and then with few."""
    with patch("dali.fused.fuse", lambda model, linears: None):
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


@pytest.mark.parametrize("format", ["f32", "f16", "bf16", *QUANTIZED])
def test_models_of_every_format_answer_as_on_the_cpu(format, tmp_path, kept_cubins):
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64}
    model = save_model(random_model("qwen3_moe", **sizes), tmp_path / "model")
    compare(model, ROUNDED if get_format(format).quantized else FLOATS, quant=format)


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


def test_keys_and_values_take_what_was_planned(dali_tiny, kept_cubins):
    llm = dali.load(dali_tiny, device="cuda", vram="1MiB")
    budget = llm.engine.scheduler.budget
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    prompts = [[token] * (llm.ctx_size // 2 - 16) for token in range(5, 9)]
    for tokens in (8, llm.ctx_size):  # two at once, one by one
        llm.generate(prompts, temperature=0, max_tokens=tokens, ignore_eos=True)
        assert torch.cuda.memory_allocated() - before <= budget + SLACK
    assert torch.cuda.max_memory_allocated() - before <= budget + TEMPORARIES
    llm.close()


def all_that_is_left() -> Iterator[torch.Tensor]:
    """Of the blocks that torch has."""
    for nbytes in (2**24, 2**20, 2**16, 2**9):
        with suppress(torch.OutOfMemoryError):
            while True:
                yield torch.empty(nbytes, dtype=torch.uint8, device="cuda")


def test_after_memory_ran_out_the_next_request_works(dali_tiny, kept_cubins):
    llm = dali.load(dali_tiny, device="cuda", vram="1MiB")
    expected = llm.generate([5, 6, 7], temperature=0, max_tokens=4, ignore_eos=True).tokens
    llm.engine.forget()
    torch.cuda.empty_cache()
    most = torch.cuda.memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(most)  # of torch's: no new block, whatever the GPU has
    taken = list(all_that_is_left())
    try:
        with pytest.raises(DaliError, match=r"memory of cuda:0 ran out amid a step.*\n.*lower vram"):
            llm.generate([5] * (llm.ctx_size // 2), temperature=0)
    finally:
        taken.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert llm.generate([5, 6, 7], temperature=0, max_tokens=4, ignore_eos=True).tokens == expected
    llm.close()


def test_a_number_there_is_not_is_refused():
    with pytest.raises(DaliError, match="there are"):
        dali.load(device="cuda:63")
