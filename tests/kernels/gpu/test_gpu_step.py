"""The sum of choices from both sides, and what is posted to the host; and that calls are laid out as the device code says."""

from __future__ import annotations

import ctypes

import device_calls as calls
import pytest
import shimmed
import torch

from dali.kernels import native
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import get_format

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights_dtype", DTYPES)
def test_the_sum_of_choices_from_both_sides(folder, dtype, weights_dtype):
    generator = torch.Generator().manual_seed(2)
    tokens, top_k, hidden = 3, 4, 70
    every = torch.randn(tokens * top_k, hidden, generator=generator)
    weights = torch.rand(tokens, top_k, generator=generator).to(weights_dtype)
    on_cpu = torch.tensor([7, 2, 11])  # pairs
    rows, above = every.clone(), torch.full_like(every, float("nan"))
    rows[on_cpu], above[on_cpu] = float("nan"), every[on_cpu]
    places = torch.zeros(tokens * top_k, dtype=torch.int32)
    places[on_cpu] = 1
    bits = (ctypes.c_uint32 * 8)(sum(1 << pair for pair in on_cpu.tolist()))
    for at in (None, places.data_ptr()):  # few pairs, many pairs
        out = torch.full((tokens, hidden), float("nan"), dtype=dtype)
        call = calls.JoinCall(
            rows.data_ptr(),
            above.data_ptr(),
            (ctypes.c_uint32 * 8)() if at else bits,
            at,
            weights.data_ptr(),
            out.data_ptr(),
            tokens,
            top_k,
            hidden,
            shimmed.DTYPES[dtype],
            shimmed.DTYPES[weights_dtype],
        )
        shimmed.run(shimmed.common(folder).run_join, call, tokens * -(-hidden // 32))
        assert shimmed.same_bits(out, native.reduce_choices(every, weights, dtype))


@pytest.mark.parametrize("base", [None, 40])
def test_what_is_posted_arrives_with_its_number(folder, base):
    added = torch.tensor([base or 0], dtype=torch.int32)
    parts = [torch.randint(-9, 9, (count,), dtype=torch.int32) for count in (3, 100)]
    there = [torch.full((len(part) + 1,), 77, dtype=torch.int32) for part in parts]
    flag = torch.zeros(1, dtype=torch.int32)
    call = calls.PostCall(
        (ctypes.c_void_p * 4)(*(part.data_ptr() for part in parts)),
        (ctypes.c_void_p * 4)(*(part.data_ptr() for part in there)),
        (ctypes.c_int * 4)(*(len(part) for part in parts)),
        flag.data_ptr(),
        5,
        None if base is None else added.data_ptr(),
    )
    shimmed.run(shimmed.common(folder).run_post, call, 1)
    assert flag.item() == 5 + added.item()
    for sent, arrived in zip(parts, there, strict=True):
        assert arrived.tolist() == [*sent.tolist(), 77]


def test_the_calls_have_the_sizes_that_the_device_code_gives_them(folder):
    experts = ExpertLayout(ExpertShape(32, 32, Activation("silu")), get_format("w4"))
    sizes = {
        "gather": calls.GatherCall,
        "inner": calls.ExpertsCall,
        "join": calls.JoinCall,
        "linear": calls.LinearCall,
        "rms_norm": calls.NormCall,
        "post": calls.PostCall,
        "add_norm": calls.AddNormCall,
        "turn": calls.TurnCall,
        "route_products": calls.RouteCall,
        "gate_up": calls.GateUpCall,
        "share": calls.ShareCall,
        "highest_of_rows": calls.HighestCall,
        "attend": calls.AttendCall,
    }
    modules = shimmed.common(folder), shimmed.linears(folder, "w4"), shimmed.build(experts, folder)
    for kernel, call in sizes.items():
        found = {
            getattr(module, f"bytes_{kernel}")() for module in modules if hasattr(module, f"bytes_{kernel}")
        }
        assert found == {ctypes.sizeof(call)}
        assert ctypes.sizeof(call) <= 4096
