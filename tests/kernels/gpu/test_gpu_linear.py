"""The GPU's kernel for packed linears, run by a stand-in for a warp: the CPU's bits."""

from __future__ import annotations

import device_calls as calls
import pytest
import shimmed
import torch

from dali.kernels import native
from dali.kernels.formats import FORMATS, get_format
from kernels.packed import random_matrix


@pytest.mark.parametrize("format", ["f32", "f16", "bf16", "w8", "w4", "q4k"])
@pytest.mark.parametrize(
    ("rows", "columns", "tokens", "biased", "divisor", "dtype"),
    [
        ([64], 64, 1, False, 1.0, torch.bfloat16),
        ([50, 16, 33], 72, 11, True, 1.0, torch.float32),
        ([16, 40], 300, 35, False, 1.0, torch.float16),
        ([70], 40, 3, False, 1.7, torch.bfloat16),
    ],
)
def test_linears(folder, format, rows, columns, tokens, biased, divisor, dtype):
    generator = torch.Generator().manual_seed(columns)
    chosen, count = get_format(format), len(rows)
    packed = [random_matrix(of, columns, chosen, seed) for seed, of in enumerate(rows)]
    biases = [torch.randn(of, generator=generator) if biased else None for of in rows]
    x = torch.randn(tokens, columns, generator=generator).to(dtype)
    expected = [native.Linear(packed[i], rows[i], columns, chosen, biases[i])(x) for i in range(count)]
    outs = [torch.full_like(one, float("nan")) for one in expected]
    matrices = [shimmed.matrix_of(chosen, of, columns) for of in rows]
    memory = shimmed.Memory(tokens, matrices[0].columns)
    products = [
        calls.Product(out.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), matrix)
        for out, weight, bias, matrix in zip(outs, packed, biases, matrices, strict=True)
    ]
    gather = calls.GatherCall(x.data_ptr(), memory.panel, tokens, columns, shimmed.DTYPES[dtype])
    linear = calls.LinearCall(
        (calls.Product * 3)(*products), memory.panel, count, tokens, shimmed.DTYPES[dtype], divisor
    )
    kernels = shimmed.linears(folder, format, 2 if tokens > 16 else 1)
    shimmed.run(kernels.run_gather_rows, gather, tokens * (matrices[0].columns // 32))
    shimmed.run(kernels.run_linear, linear, sum(-(-of // 32) for of in rows))
    for out, wanted in zip(outs, expected, strict=True):
        assert shimmed.same_bits(out, (wanted.float() / divisor).to(dtype))


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if format.quantized])
def test_every_format(folder, format, passes):
    rows, columns, tokens, chosen = 50, 600, 3, get_format(format)
    packed = random_matrix(rows, columns, chosen)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(1))
    expected = native.Linear(packed, rows, columns, chosen, None)(x)
    out, matrix = torch.full_like(expected, float("nan")), shimmed.matrix_of(chosen, rows, columns)
    memory, kernels = shimmed.Memory(tokens, matrix.columns), shimmed.linears_of_every_format(folder, passes)
    product = calls.Product(out.data_ptr(), packed.data_ptr(), None, matrix)
    gather = calls.GatherCall(x.data_ptr(), memory.panel, tokens, columns, shimmed.DTYPES[x.dtype])
    linear = calls.LinearCall(
        (calls.Product * 3)(product), memory.panel, 1, tokens, shimmed.DTYPES[x.dtype], 1
    )
    shimmed.run(kernels.run_gather_rows, gather, tokens * (matrix.columns // 32))
    shimmed.run(kernels.run_linear_of, linear, -(-rows // 32), list(FORMATS).index(format))
    assert expected.isfinite().all()
    assert expected.std() > 0.001
    assert shimmed.same_bits(out, expected)
