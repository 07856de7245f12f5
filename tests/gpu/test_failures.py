"""What a GPU, its driver and its memory may refuse: one sentence, a way out, nothing left behind, and the next request works.

On a stand-in for the driver that computes nothing: that answers stay the same is tested in test_gpu_model.py and test_layers.py.
"""

from __future__ import annotations

import gc
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake import COMPILER, FakeDriver, FakeGpu

import dali
from dali.errors import DaliError
from dali.kernels import native
from dali.kernels.gpu import compiler
from dali.offload.build import accelerate
from dali.options import LoadOptions
from dali.progress import silent
from families import random_model, save_model

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no g++"),
    pytest.mark.skipif(not native.enabled(), reason="the native library is not built"),
]
DECLARED = Path(__file__).parents[2] / "src" / "native" / "gpu" / "driver.h"
CALLS = dict(re.findall(r'call\((\w+), "(\w+)"', DECLARED.read_text()))
FREEING = {name for name in CALLS if name.startswith(("release", "unload", "unregister", "destroy"))}
ROUTED = torch.arange(64)[None] % 4  # what an idle GPU posts: neighbours differ
OPENING = [
    "initialise",
    "device_count",
    "get_device",
    "retain_context",
    "set_context",
    "device_name",
    "device_attribute",
    "driver_version",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def driver(folder):
    return FakeDriver(folder)


@pytest.fixture(autouse=True)
def idle(driver, folder, monkeypatch):
    """ "cuda" is the stand-in."""
    gc.collect()
    monkeypatch.setenv("DALI_CACHE_DIR", str(folder / "cache"))
    driver.reset(0)
    driver.idle()
    for module in ("build", "gpu"):
        monkeypatch.setattr(f"dali.offload.{module}.Gpu", lambda device: FakeGpu(device, driver))
    monkeypatch.setattr("dali.offload.gpu.TEMPORARIES", 0)
    driver.route(ROUTED, ROUTED)
    monkeypatch.setattr(FakeGpu, "hand_over", lambda self: None)  # it waits, and nothing is put off here


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr("dali.offload.gpu.cubin", lambda *arguments: b"none is read")


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64}
    return save_model(random_model("qwen3_moe", **sizes), tmp_path_factory.mktemp("model"))


def load(directory: Path, notes: list[str] | None = None, **options):
    told = [].append if notes is None else notes.append
    return dali.load(directory, notify=told, **{"quant": "w4", "device": "cuda", "vram": "120KiB"} | options)


def answer(llm) -> int:
    """How many tokens were generated."""
    return len(llm.generate([5, 6, 7], temperature=0, max_tokens=4, ignore_eos=True).tokens)


def check_told(error: DaliError) -> None:
    """A sentence that says what failed and one with the way out, and none of Python's."""
    assert error.problem.endswith(".")
    assert error.fix.endswith(".")
    assert "Traceback" not in str(error)
    assert len(str(error).splitlines()) == 2


@pytest.mark.parametrize(
    ("library", "problem"),
    [
        ("nowhere/libcuda.so", "there is no NVIDIA driver (nowhere/libcuda.so cannot be loaded)."),
        ("libm.so.6", "the NVIDIA driver is too old: it lacks cuGetErrorName."),
    ],
)
def test_no_driver_and_one_without_all_calls_are_said(library, problem):
    with pytest.raises(DaliError) as raised:
        FakeGpu("cuda", SimpleNamespace(path=library))
    assert raised.value.problem == f"Device 'cuda' cannot be used: {problem}"
    assert raised.value.fix == "Install or update NVIDIA's driver, or use device cpu."


@pytest.mark.parametrize(
    ("described", "problem"),
    [
        ({"version": 11080}, "The driver of cuda (a stand-in) is for CUDA 11.8, and dali needs 12."),
        (
            {"sm": 70},
            "cuda (a stand-in) has compute capability 7.0, and dali needs 7.5 (RTX 20, GTX 16 or newer).",
        ),
    ],
)
def test_what_is_too_old_is_refused_before_anything_is_loaded(driver, directory, described, problem):
    before = driver.held
    driver.describe(**described)
    with pytest.raises(DaliError) as raised:
        load(directory)
    assert raised.value.problem == problem
    check_told(raised.value)
    del raised  # its traceback holds what was opened
    gc.collect()
    assert driver.held == before


def test_the_oldest_that_will_do_do(driver):
    driver.describe(version=12000, sm=75)
    assert FakeGpu("cuda", driver).sm == 75


@pytest.mark.parametrize("call", OPENING)
def test_a_call_that_fails_while_a_gpu_is_opened_is_said(driver, call):
    before = driver.held
    driver.fail(CALLS[call], 1, 999)
    with pytest.raises(
        DaliError, match=f"^Device 'cuda' cannot be used: {call}: CUDA_ERROR_UNKNOWN"
    ) as raised:
        FakeGpu("cuda", driver)
    check_told(raised.value)
    del raised
    gc.collect()
    assert driver.held == before
    driver.fail("", 0, 0)
    assert FakeGpu("cuda", driver).name == "cuda (a stand-in)"


@pytest.fixture(scope="module")
def on_cpu(directory, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(folder / "cache"))
        patch.setattr("dali.fused.fuse", lambda model, linears, losses=None: None)
        return dali.load(directory, quant="w4")


def put_on_gpu(llm, told) -> None:
    """What loading does over a GPU, once the model is there; and then give it back."""
    options = LoadOptions(device="cuda", vram="120KiB")
    accelerate(llm.loaded, llm.engine, options, silent, told).executor.device.close()


def called(driver, work) -> list[str]:
    """The calls that `work` makes of those whose failure must be heard of."""
    before = {name: driver.calls(symbol) for name, symbol in CALLS.items()}
    work()
    made = [name for name, symbol in CALLS.items() if driver.calls(symbol) > before[name]]
    return ["set_context", *(name for name in made if name not in FREEING)]  # that one is not counted


def failing(driver, call: str, code: int, work) -> tuple[str, str] | None:
    """What is told where the first `call` in `work` fails."""
    driver.fail(CALLS[call], 1, code)
    try:
        work()
    except DaliError as error:
        return error.problem, error.fix
    finally:
        driver.fail("", 0, 0)
    return None


def test_whatever_call_fails_while_a_gpu_is_made_ready_it_is_said_and_nothing_is_left(
    driver, on_cpu, kernels
):
    before, notes = driver.held, []
    work = partial(put_on_gpu, on_cpu, notes.append)
    calls = called(driver, work)
    assert len(calls) > 15
    for call in calls:
        told = failing(driver, call, 999, work)
        if call == "register_host":  # without page-locked memory it is slower, and says so
            assert told is None
            continue
        assert told is not None, call
        problem, fix = told
        assert f"{call}: CUDA_ERROR_UNKNOWN" in problem
        assert problem.endswith(".")
        assert fix.endswith("device cpu.")
        gc.collect()
        assert driver.held == before, call
    assert not any("expert slots instead" in note for note in notes)  # fewer would not help
    work()


@pytest.fixture(scope="module")
def on_gpu(driver, directory, folder):
    driver.reset(0)
    driver.idle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(folder / "cache"))
        patch.setattr("dali.offload.gpu.cubin", lambda *arguments: b"none is read")
        for module in ("build", "gpu"):
            patch.setattr(f"dali.offload.{module}.Gpu", lambda device: FakeGpu(device, driver))
        patch.setattr("dali.offload.gpu.TEMPORARIES", 0)
        return load(directory)


def test_whatever_call_fails_in_a_request_it_is_said_and_the_next_works(driver, on_gpu):
    work = partial(answer, on_gpu)
    calls = called(driver, work)
    held = driver.held  # graphs of such a step included
    heard = set()
    for call in calls:
        for code, way_out in ((700, "device cpu."), (2, "lower ctx_size or vram.")):
            told = failing(driver, call, code, work)
            if told is not None:  # some are made or not, as plans are, which go by the clock
                heard.add(call)
                problem, fix = told
                assert f"({call}: CUDA_ERROR_" in problem
                assert fix.endswith(way_out)
            assert answer(on_gpu) == 4
            assert driver.held == held, call
    assert heard >= {"set_context", "launch", "copy_up"}


def test_without_nvrtc_loading_says_so_and_what_to_install(driver, directory, monkeypatch):
    compiler.find_compiler.cache_clear()
    monkeypatch.setattr(compiler, "_candidates", lambda: [])
    before, notes = driver.held, []
    with pytest.raises(DaliError, match=r"^There is no libnvrtc.*\nInstall a CUDA build of torch"):
        load(directory, notes)
    compiler.find_compiler.cache_clear()
    assert not any("expert slots instead" in note for note in notes)
    gc.collect()
    assert driver.held == before


def test_memory_that_others_took_since_planning_is_said_once_no_slot_is_left(
    driver, on_cpu, kernels, monkeypatch
):
    before, notes = driver.held, []
    driver.reset(0, total=driver.used + 4096)
    driver.idle()
    monkeypatch.setattr(FakeGpu, "free_bytes", lambda self: 1 << 30)
    with pytest.raises(
        DaliError, match=r"OUT_OF_MEMORY.*\nClose other programs that use it, or lower ctx_size or vram"
    ):
        put_on_gpu(on_cpu, notes.append)
    assert any("OUT_OF_MEMORY" in note and "expert slots instead" in note for note in notes)
    gc.collect()
    assert driver.held == before
    driver.reset(0)
    driver.idle()
    put_on_gpu(on_cpu, notes.append)
