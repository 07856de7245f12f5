"""The GPU's dense feed-forward networks between their linears, and shared experts: the bits of the CPU's."""

from __future__ import annotations

import device_calls as calls
import pytest
import shimmed
import torch

from dali.kernels import native
from dali.kernels.activation import KINDS

F32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize("kind", KINDS[:5])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    ("tokens", "width", "columns", "joined"), [(1, 64, 64, True), (3, 50, 256, False), (40, 33, 64, True)]
)
def test_gate_and_up(folder, kind, dtype, tokens, width, columns, joined):
    generator = torch.Generator().manual_seed(width)
    both = (torch.randn(tokens, 2 * width, generator=generator) * 4).to(dtype)
    gate, up = both[:, :width], both[:, width:]
    if not joined:
        gate, up = gate.contiguous(), up.contiguous()
    wanted = native.activate(gate.contiguous(), kind) * up
    memory = shimmed.Memory(tokens, columns)
    sizes = tokens, width, gate.stride(0), shimmed.DTYPES[dtype], KINDS.index(kind)
    call = calls.GateUpCall(gate.data_ptr(), up.data_ptr(), memory.panel, *sizes)
    shimmed.run(shimmed.common(folder).run_gate_up, call, tokens * (columns // 32))
    assert memory.same_as(shimmed.gathered(wanted, columns, folder))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("gate_dtype", [None, F32, BF16])
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 64), (5, 100), (40, 31)])
def test_shared_experts(folder, dtype, gate_dtype, tokens, hidden):
    generator = torch.Generator().manual_seed(hidden)
    part, shared, x = ((torch.randn(tokens, hidden, generator=generator) * 2).to(dtype) for _ in range(3))
    gate = None
    wanted = part + shared
    if gate_dtype is not None:
        gate = torch.randn(hidden, generator=generator).to(gate_dtype)
        wanted = part + shared * native.sigmoid(native.gate_logits(x, gate))
    call = calls.ShareCall(
        *(tensor.data_ptr() for tensor in (part, shared, x)),
        None if gate is None else gate.data_ptr(),
        *(tokens, hidden, shimmed.DTYPES[dtype], shimmed.DTYPES[gate_dtype or F32]),
    )
    shimmed.run(shimmed.common(folder).run_share, call, tokens * -(-hidden // 32))
    assert shimmed.same_bits(part, wanted)


def test_sigmoids_of_any_float(folder):
    """The device's, as the gates of shared experts with one value, whose logits are x times 1."""
    edges = [0.0, -0.0, 1e-40, 88.72, 88.73, -88.73, -103.9, -104.1, float("inf"), -float("inf")]
    x = torch.cat((torch.linspace(-110, 110, 2000), torch.linspace(-2, 2, 2000), torch.tensor(edges)))
    part, shared, gate = torch.zeros(len(x)), torch.ones(len(x)), torch.ones(1)
    tensors = part, shared, x, gate
    call = calls.ShareCall(*(tensor.data_ptr() for tensor in tensors), len(x), 1, 0, 0)
    shimmed.run(shimmed.common(folder).run_share, call, len(x))
    assert shimmed.same_bits(part, native.sigmoid(x))
