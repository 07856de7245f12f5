"""The GPU's kernels for packed linears, norms and the sum of choices, run by a stand-in for a warp: the CPU's bits."""

from __future__ import annotations

import ctypes

import pytest
import shimmed
import torch

from dali.kernels import native
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import FORMATS, get_format
from dali.kernels.packing import pack

pytestmark = [
    pytest.mark.skipif(shimmed.COMPILER is None, reason="there is no g++"),
    pytest.mark.skipif(
        not native.enabled() or native.variant() == "portable",
        reason="the CPU's kernels do not fuse multiply-adds",
    ),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shimmed")


def library(folder, format: str = "w8", passes: int = 1):
    """Its linears are of `format`."""
    layout = ExpertLayout(ExpertShape(32, 32, Activation("silu")), get_format(format))
    return shimmed.build(layout, folder, passes)


def same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("rows", "columns", "tokens", "biased", "dtype"),
    [
        (64, 64, 1, False, torch.bfloat16),
        (50, 72, 11, True, torch.float32),
        (16, 300, 35, False, torch.float16),
    ],
)
def test_linears(folder, format, rows, columns, tokens, biased, dtype):
    generator = torch.Generator().manual_seed(rows)
    chosen = get_format(format)
    packed = pack(torch.randn(rows, columns, generator=generator), chosen)
    bias = torch.randn(rows, generator=generator) if biased else None
    x = torch.randn(tokens, columns, generator=generator).to(dtype)
    expected = native.Linear(packed, rows, columns, chosen, bias)(x)
    out = torch.full_like(expected, float("nan"))
    matrix = shimmed.matrix_of(chosen, rows, columns)
    memory = shimmed.Memory(tokens, matrix.columns)
    gather = shimmed.GatherCall(x.data_ptr(), memory.panel, tokens, columns, shimmed.DTYPES[dtype])
    bias_at = None if bias is None else bias.data_ptr()
    product = out.data_ptr(), packed.data_ptr(), bias_at, memory.panel, matrix, tokens, shimmed.DTYPES[dtype]
    kernels = library(folder, format, 2 if tokens > 16 else 1)
    shimmed.run(kernels.run_gather_rows, gather, tokens * (matrix.columns // 32))
    shimmed.run(kernels.run_linear, shimmed.LinearCall(*product), -(-rows // 32))
    assert same_bits(out, expected)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (5, 100), (3, 15), (2, 2049)])
def test_norms(folder, dtype, rows, width):
    generator = torch.Generator().manual_seed(width)
    x = (torch.randn(rows, width, generator=generator) * 5).to(dtype)
    weight = torch.randn(width, generator=generator).to(dtype)
    out = torch.full_like(x, float("nan"))
    call = shimmed.NormCall(
        x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, width, shimmed.DTYPES[dtype], 1e-5
    )
    shimmed.run(library(folder).run_rms_norm, call, rows)
    assert same_bits(out, native.rms_norm(x, weight, 1e-5))


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
        call = shimmed.JoinCall(
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
        shimmed.run(library(folder).run_join, call, tokens * -(-hidden // 32))
        assert same_bits(out, native.reduce_choices(every, weights, dtype))


def test_what_is_posted_arrives_with_its_number(folder):
    parts = [torch.randint(-9, 9, (count,), dtype=torch.int32) for count in (3, 100)]
    there = [torch.full((len(part) + 1,), 77, dtype=torch.int32) for part in parts]
    flag = torch.zeros(1, dtype=torch.int32)
    call = shimmed.PostCall(
        (ctypes.c_void_p * 4)(*(part.data_ptr() for part in parts)),
        (ctypes.c_void_p * 4)(*(part.data_ptr() for part in there)),
        (ctypes.c_int * 4)(*(len(part) for part in parts)),
        flag.data_ptr(),
        5,
    )
    shimmed.run(library(folder).run_post, call, 1)
    assert flag.item() == 5
    for sent, arrived in zip(parts, there, strict=True):
        assert arrived.tolist() == [*sent.tolist(), 77]


def test_the_calls_have_the_sizes_that_the_device_code_gives_them(folder):
    sizes = {
        "gather": shimmed.GatherCall,
        "inner": shimmed.ExpertsCall,
        "join": shimmed.JoinCall,
        "linear": shimmed.LinearCall,
        "rms_norm": shimmed.NormCall,
        "post": shimmed.PostCall,
    }
    for kernel, call in sizes.items():
        assert getattr(library(folder), f"bytes_{kernel}")() == ctypes.sizeof(call) <= 4096


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "key_width", "value_width", "sinks", "lengths"),
    [
        (4, 2, 64, 64, False, [(1, 0), (5, 0), (33, 20)]),
        (6, 1, 40, 24, True, [(17, 0), (2, 1)]),
        (2, 2, 16, 16, True, [(1030, 0), (2100, 3), (9, 0)]),
    ],
)
def test_decoding_attention(folder, dtype, heads, kv_heads, key_width, value_width, sinks, lengths):
    generator = torch.Generator().manual_seed(heads)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    tokens = len(lengths)
    query, keys, values = (
        random(tokens, count, width)
        for count, width in ((heads, key_width), (kv_heads, key_width), (kv_heads, value_width))
    )
    logits = torch.randn(heads, generator=generator) if sinks else None
    caches = [
        [
            (random(kv_heads, kept + 4, key_width), random(kv_heads, kept + 4, value_width))
            for kept, _ in lengths
        ]
        for _ in range(2)
    ]
    caches[1] = [(k.clone(), v.clone()) for k, v in caches[0]]
    outs = [torch.full((tokens, heads, value_width), float("nan"), dtype=dtype) for _ in range(2)]
    places = [
        (row, k.data_ptr(), v.data_ptr(), k.shape[1], kept - 1, first)
        for row, ((k, v), (kept, first)) in enumerate(zip(caches[0], lengths, strict=True))
    ]
    native.attend(
        query.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1), places, 0.3, logits, outs[0]
    )

    kept_tokens = (shimmed.KeptToken * tokens)(
        *(
            shimmed.KeptToken(k.data_ptr(), v.data_ptr(), k.shape[1], kept - 1, first, row)
            for row, ((k, v), (kept, first)) in enumerate(zip(caches[1], lengths, strict=True))
        )
    )
    parts = max((kept - 1 - first) // 1024 + 1 for kept, first in lengths)
    items = tokens * heads * parts
    scratch = [torch.full((items, width), float("nan")) for width in (1024, 1, 1, value_width)]
    call = shimmed.AttendCall(
        *(t.data_ptr() for t in (query, keys, values, outs[1])),
        ctypes.addressof(kept_tokens),
        None if logits is None else logits.data_ptr(),
        *(t.data_ptr() for t in scratch),
        *(tokens, parts, heads, kv_heads, key_width, value_width, shimmed.DTYPES[dtype], 0.3),
    )
    kernels = library(folder)
    shimmed.run(kernels.run_keep, call, tokens * kv_heads)
    shimmed.run(kernels.run_attend, call, items)
    shimmed.run(kernels.run_merge, call, tokens * heads)
    for ours, theirs in zip(caches[1], caches[0], strict=True):
        assert all(map(same_bits, ours, theirs))
    assert same_bits(outs[1], outs[0])
