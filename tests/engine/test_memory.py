from __future__ import annotations

import gc
import weakref

import pytest
import torch

import dali
from dali.engine.memory import MemoryErrors
from dali.errors import DaliError
from dali.llm import LLM
from dali.step.kv import LayerKV

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22]]


class On:
    """A model on some device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)


def nothing() -> None:
    """There is nothing to be given up."""


RAN_OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", RAN_OUT, ids=lambda error: type(error).__name__)
def test_whoever_runs_out_of_memory_is_told_what_to_lower(error):
    with (
        pytest.raises(DaliError, match=r"memory of cuda:0 ran out .*\n.*lower vram or ctx_size"),
        MemoryErrors(On("cuda:0"), nothing),
    ):
        raise error
    with (
        pytest.raises(
            DaliError, match=r"memory of cpu ran out .*\n.*shorter prompts.*other programs"
        ) as found,
        MemoryErrors(On("cpu"), nothing),
    ):
        raise error
    assert "vram" not in str(found.value)


def test_other_errors_pass():
    for error in (RuntimeError("shape mismatch"), KeyboardInterrupt(), DaliError("No.", "Yes.")):
        with pytest.raises(type(error)) as found, MemoryErrors(On("cpu"), nothing):
            raise error
        assert found.value is error


def test_the_error_holds_no_tensor_of_the_step():
    held = None

    def compute() -> None:
        nonlocal held
        tensor = torch.zeros(3)
        held = weakref.ref(tensor)
        raise torch.OutOfMemoryError("no")

    with pytest.raises(DaliError) as found, MemoryErrors(On("cpu"), nothing):
        compute()
    gc.collect()
    assert found.value.__cause__ is not None
    assert held() is None


@pytest.mark.parametrize("where", ["in the first layer", "in the last", "in the sampler"])
def test_after_memory_ran_out_the_step_can_be_tried_again(dali_tiny, monkeypatch, where):
    llm = dali.load(dali_tiny, quant="w8")
    greedy = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    expected = [answer.tokens for answer in llm.generate(PROMPTS, **greedy)]
    llm.engine.forget()
    sequences = [llm.sequence(prompt, **greedy) for prompt in PROMPTS]
    for sequence in sequences:
        llm.engine.add(sequence)
    llm.engine.scheduler.step_tokens = 4
    for _ in range(3):
        with monkeypatch.context() as patch:
            run_out(patch, where, llm.model.config.num_hidden_layers)
            with pytest.raises(DaliError, match="ran out amid a step"):
                step_twice(llm)
        assert llm.engine.step()
    while llm.engine.step():
        pass
    assert [sequence.generated for sequence in sequences] == expected


def test_the_next_try_has_the_room_of_what_a_finished_answer_left(dali_tiny, monkeypatch):
    llm = dali.load(dali_tiny, quant="w8")
    done, other = (llm.sequence(prompt, temperature=0, max_tokens=2) for prompt in PROMPTS)
    llm.loop.complete([done])
    assert done.state.nbytes > 0
    llm.engine.add(other)
    with monkeypatch.context() as patch:
        run_out(patch, "in the first layer", llm.model.config.num_hidden_layers)
        with pytest.raises(DaliError, match="ran out amid a step"):
            llm.engine.step()
    assert done.state.nbytes == 0
    llm.engine.abort(other)


def step_twice(llm: LLM) -> None:
    """A step of a prompt's part samples nothing."""
    llm.engine.step()
    llm.engine.step()


def run_out(patch: pytest.MonkeyPatch, where: str, layers: int) -> None:
    owner, name, turn = {
        "in the first layer": (LayerKV, "place", 1),
        "in the last": (LayerKV, "place", layers),
        "in the sampler": (dali.engine.sampling.Sampler, "sample", 1),
    }[where]
    plain, calls = getattr(owner, name), 0

    def fail(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == turn:
            raise torch.OutOfMemoryError("no")
        return plain(self, *arguments)

    patch.setattr(owner, name, fail)
