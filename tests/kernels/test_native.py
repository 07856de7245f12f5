"""The compiled kernels against the reference, in every instruction set this machine has."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dali.errors import UsageError
from dali.kernels import native, reference
from dali.kernels.activation import KINDS, Activation
from dali.kernels.expert import ExpertLayout, ExpertShape, ExpertWeights
from dali.kernels.formats import FORMATS, assemble, disassemble
from dali.kernels.packing import pack
from dali.kernels.values import integers
from kernels.packed import random_matrix

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")

SILU = Activation("silu")
every_variant = pytest.mark.parametrize(
    "variant", native.variants() if native.AVAILABLE else [], indirect=True
)
every_format = pytest.mark.parametrize("format", FORMATS)


@pytest.fixture(scope="module")
def variant(request):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(native.VARIABLE, request.param)
        assert native.enabled()
        yield request.param
    native.enabled()


@pytest.fixture
def threads():
    before = native.threads()
    yield native.set_threads
    native.set_threads(before)


def packed(layout: ExpertLayout, experts: int = 1, seed: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    memory = torch.zeros(experts, layout.record_bytes, dtype=torch.uint8)
    for number, record in enumerate(memory):
        for name, (rows, columns) in layout.shape.matrices.items():
            format = layout.formats[name]
            layout.part(record, name).copy_(
                random_matrix(rows, columns, format, seed + 3 * number + ord(name[0]))
            )
            if layout.shape.biased:
                layout.part(record, f"{name}_bias").view(torch.float32).copy_(torch.randn(rows))
    return list(memory)


def route(tokens: int, experts: int, top_k: int, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Slots sorted by expert, and where each expert's begin: each token goes to `top_k` different experts."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(experts, generator=generator)[:top_k] for _ in range(tokens)]).flatten()
    counts = torch.bincount(ids, minlength=experts)
    return ids.argsort(stable=True), [0, *counts.cumsum(0).tolist()]


def compute(layout, records, offsets, slots, hidden, top_k=1, kernels=native, **options):
    rows = torch.full((len(hidden) * top_k, layout.shape.hidden), float("nan"))
    kernels.compute_experts(layout, records, offsets, slots, hidden, rows, **options)
    return rows


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


@every_variant
@every_format
@given(
    rows=st.integers(1, 100),
    columns=st.integers(1, 12).map(lambda n: 32 * n) | st.integers(1, 600),
    tokens=st.integers(1, 30),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=12)
def test_a_linear_is_the_references(variant, format, rows, columns, tokens, seed):
    """Only the order of float additions differs, and whether they are fused."""
    torch.manual_seed(seed)
    shape = ExpertShape(columns, rows, Activation("relu"), gated=False)
    layout = ExpertLayout(shape, FORMATS[format])
    part = random_matrix(rows, columns, layout.format, seed)
    x = torch.randn(tokens, columns)
    found = native.Linear(part, rows, columns, layout.format)(x)
    if layout.format.quantized:
        read = reference.disassemble(part, rows, columns, layout.format)
        expected = reference._int8_linear(x, *integers(*read, layout.format), None)
    else:
        expected = x.double() @ reference.unpack(part, rows, columns, layout.format).double().T
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=2e-5)


@every_variant
@every_format
@given(
    hidden=st.integers(1, 9).map(lambda n: 32 * n),
    intermediate=st.integers(1, 9).map(lambda n: 32 * n) | st.integers(1, 100),
    tokens=st.integers(1, 40),
    gated=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=10)
def test_experts_are_the_references(variant, format, hidden, intermediate, tokens, gated, biased, seed):
    """An activation that differs in its last bit may round to the next int8: 1 / 127 of its group's largest."""
    layout = ExpertLayout(ExpertShape(hidden, intermediate, SILU, gated, biased), FORMATS[format])
    records = packed(layout, 5, seed)
    slots, offsets = route(tokens, 5, 2, seed)
    x = torch.randn(tokens, hidden)
    found = compute(layout, records, offsets, slots, x, 2)
    expected = compute(layout, records, offsets, slots, x, 2, reference, arithmetic="int8")
    assert distance(found, expected) < (5e-3 if layout.format.quantized else 1e-5)


@every_variant
@pytest.mark.parametrize("kind", KINDS)
def test_every_activation(variant, kind):
    layout = ExpertLayout(ExpertShape(64, 96, Activation(kind, 1.702, 1.5), biased=True), FORMATS["f32"])
    records = packed(layout)
    x = torch.randn(20, 64) * torch.logspace(-3, 2, 20)[:, None]
    found = compute(layout, records, [0, 20], torch.arange(20), x)
    expected = reference.expert_ffn(layout, records[0], x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every_variant
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "clamped_swiglu", "clamped_silu"])
def test_activations_far_out(variant, kind):
    """Where exp overflows or vanishes: identity matrices carry single values through."""
    layout = ExpertLayout(ExpertShape(32, 32, Activation(kind, 1.702, 7.0)), FORMATS["f32"])
    record = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    eye = torch.eye(32)
    layout.pack(ExpertWeights(eye, eye, eye), record)
    x = torch.tensor([-1e30, -1e4, -120, -88, -30, -1, -1e-30, 0, 1e-30, 1, 30, 88, 120, 1e4, 1e15]).repeat(
        3
    )[:32]
    found = compute(layout, [record], [0, 1], torch.arange(1), x[None])
    torch.testing.assert_close(found, reference.expert_ffn(layout, record, x[None]), rtol=1e-5, atol=1e-30)


@every_variant
@pytest.mark.parametrize(
    "formats",
    [
        ("w4", "w4", "w8"),
        ("q4k", "q4k", "w8"),
        ("w8", "q4k", "mxfp4"),
        ("bf16", "w4", "f32"),
        ("w4", "f16", "q4k"),
        ("iq3_s", "iq2_xxs", "q4k"),  # without halves both, and looked up in orders of their own
    ],
)
def test_a_format_for_each_matrix(variant, formats):
    shape = ExpertShape(160, 96, SILU, biased=True)
    layout = ExpertLayout.mixed(
        shape, {name: FORMATS[f] for name, f in zip(shape.matrices, formats, strict=True)}
    )
    records = packed(layout, 3)
    slots, offsets = route(9, 3, 2)
    x = torch.randn(9, 160)
    found = compute(layout, records, offsets, slots, x, 2)
    exact = compute(layout, records, offsets, slots, x, 2, reference)
    assert distance(found, exact) < 0.02  # int8 activations


@every_variant
@every_format
def test_results_do_not_depend_on_threads_neighbours_or_splits(variant, format, threads):
    layout = ExpertLayout(ExpertShape(288, 160, SILU), FORMATS[format])
    records = packed(layout, 6)
    slots, offsets = route(33, 6, 2)
    x = torch.randn(33, 288)
    threads(1)
    expected = compute(layout, records, offsets, slots, x, 2)
    for count in (2, 3, 7):  # more than there are cores, too
        threads(count)
        for _ in range(3):
            assert torch.equal(compute(layout, records, offsets, slots, x, 2), expected), count
    alone = torch.empty_like(expected)
    for expert in range(6):  # one expert a call, one token a call
        for slot in slots[offsets[expert] : offsets[expert + 1]].tolist():
            row = compute(
                layout, [records[expert]], [0, 1], torch.tensor([slot % 2]), x[slot // 2 : slot // 2 + 1], 2
            )
            alone[slot] = row[slot % 2]
    assert torch.equal(alone, expected)


@every_variant
@every_format
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_poisoned_token_poisons_its_own_rows_and_no_others(variant, format, poison):
    layout = ExpertLayout(ExpertShape(64, 96, SILU), FORMATS[format])
    records = packed(layout, 2)
    slots, offsets = route(14, 2, 2)
    x = torch.randn(14, 64)
    clean = compute(layout, records, offsets, slots, x, 2)
    x[5, 40] = poison
    rows = compute(layout, records, offsets, slots, x, 2)
    others = [row for row in range(28) if row // 2 != 5]
    assert torch.equal(rows[others], clean[others])
    assert not rows[10:12].isfinite().any()


@every_variant
@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if format.quantized])
def test_groups_of_zeros_and_denormals(variant, format):
    layout = ExpertLayout(ExpertShape(64, 32, SILU), FORMATS[format])
    records = packed(layout)
    x = torch.zeros(2, 64)
    x[1, :32] = 1e-38  # 127 / 1e-38 overflows
    assert (compute(layout, records, [0, 2], torch.arange(2), x) == 0).all()


@every_variant
@pytest.mark.parametrize(
    "format", [name for name, format in FORMATS.items() if format.quantized and not format.coded]
)
def test_the_largest_numbers_fit_the_sums(variant, format):
    """A row for each quant that there is, times activations that are all 127, or -127."""
    format = FORMATS[format]
    rows, columns = max(2**format.bits, 16), format.block
    quants = torch.arange(rows).remainder(2**format.bits).to(torch.uint8)
    _, scales = disassemble(random_matrix(rows, columns, format), rows, columns, format)
    part = assemble(quants[:, None, None].expand(rows, columns // 32, 32), scales, format)
    x = torch.tensor([1.0, -1.0]).repeat(6)[:, None].expand(12, columns).contiguous()
    found = native.Linear(part, rows, columns, format)(x)
    expected = reference._int8_linear(x, *integers(*disassemble(part, rows, columns, format), format), None)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=2e-5)


def test_no_tokens_and_experts_nobody_routed_to():
    layout = ExpertLayout(ExpertShape(64, 96, SILU), FORMATS["w8"])
    records = packed(layout, 3)
    records[1].fill_(255)  # NaN in every scale
    rows = torch.full((6, 64), -7.0)
    slots = torch.tensor([4, 1])
    native.compute_experts(layout, records, [0, 1, 1, 2], slots, torch.randn(3, 64), rows)
    assert (rows[[0, 2, 3, 5]] == -7).all()
    assert rows[[1, 4]].isfinite().all()
    native.compute_experts(layout, records, [0, 0, 0, 0], slots[:0], torch.randn(3, 64), rows)
    native.compute_experts(layout, [], [0], slots[:0], torch.empty(0, 64), torch.empty(0, 64))
    assert (rows[[0, 2, 3, 5]] == -7).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hidden_of_any_float_type(dtype):
    layout = ExpertLayout(ExpertShape(64, 96, SILU), FORMATS["w4"])
    records = packed(layout)
    x = torch.randn(4, 64).to(dtype)
    rows = compute(layout, records, [0, 4], torch.arange(4), x)
    assert torch.equal(rows, compute(layout, records, [0, 4], torch.arange(4), x.float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(tokens=st.integers(0, 20), top_k=st.integers(1, 5), hidden=st.integers(1, 70), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_slots_are_summed_as_the_reference_sums_them(dtype, tokens, top_k, hidden, seed):
    torch.manual_seed(seed)
    rows, shares = torch.randn(tokens * top_k, hidden), torch.rand(tokens, top_k)
    expected = reference.reduce_choices(rows, shares).to(dtype)
    assert torch.equal(native.reduce_choices(rows, shares, dtype), expected)


@every_variant
def test_half_precision_is_read_and_rounded_as_torch_does(variant):
    """An identity matrix hands every float16 and bfloat16 through: in as it is, out rounded to the nearest, ties to even."""
    one = native.Linear(pack(torch.ones(1, 1), FORMATS["f32"]), 1, 1, FORMATS["f32"])
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
        every = every[every.isfinite()][:, None]
        assert torch.equal(one(every), every)
    half = native.Linear(pack(torch.full((1, 1), 1 / 3), FORMATS["f32"]), 1, 1, FORMATS["f32"])
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(5000, 1).mul(10.0 ** torch.randint(-9, 5, (5000, 1))).to(dtype)
        assert torch.equal(half(x), (x.float() * torch.tensor(1 / 3)).to(dtype))


def test_calls_at_the_same_time(threads):
    """The threads serve one call; the other computes alone. Both are right."""
    threads(2)
    layout = ExpertLayout(ExpertShape(256, 256, SILU), FORMATS["w4"])
    records = packed(layout, 4)
    slots, offsets = route(40, 4, 2)
    inputs = [torch.randn(40, 256) for _ in range(4)]
    expected = [compute(layout, records, offsets, slots, x, 2) for x in inputs]
    equal = []

    def repeat(i):
        found = [compute(layout, records, offsets, slots, inputs[i], 2) for _ in range(50)]
        equal.append(all(torch.equal(rows, expected[i]) for rows in found))

    callers = [threading.Thread(target=repeat, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert equal == [True] * 4


def test_pinned_threads_compute_the_same(threads):
    layout = ExpertLayout(ExpertShape(64, 96, SILU), FORMATS["w8"])
    records, x = packed(layout), torch.randn(3, 64)
    expected = compute(layout, records, [0, 3], torch.arange(3), x)
    native.set_threads(2, pinned=True)
    assert torch.equal(compute(layout, records, [0, 3], torch.arange(3), x), expected)


OUT_OF_MEMORY = """
import resource
import torch
from dali.kernels import native

native.set_threads(2)
count, heads = 512, 1 << 18  # whose scores take 128 MiB a thread
query, new = torch.zeros(heads, 1, 8), torch.zeros(2, 1, 8)
keys, values = torch.zeros(2, count, 8), torch.zeros(2, count, 8)
out = torch.empty(1, heads, 8)

def attend(place):
    token = (0, keys.data_ptr(), values.data_ptr(), count, place, 0, False)
    native.attend(query, new, new, [token], 1.0, None, out)

attend(20)
before, (_, most) = out.clone(), resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), most))
for _ in range(20):
    attend(20)  # so that the other thread is awake
    try:
        attend(count - 1)
    except MemoryError:
        continue
    raise SystemExit("there was memory")
resource.setrlimit(resource.RLIMIT_AS, (most, most))
attend(20)
assert torch.equal(out, before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no limit to set on this system")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer itself needs memory")
def test_where_memory_ends_the_caller_hears_of_it_and_the_threads_go_on():
    run = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_environment_chooses(monkeypatch):
    monkeypatch.delenv(native.VARIABLE, raising=False)
    assert native.enabled()
    monkeypatch.setenv(native.VARIABLE, "torch")
    assert not native.enabled()
    monkeypatch.setenv(native.VARIABLE, "mmx")
    with pytest.raises(UsageError, match=r"'mmx'[^\n]*\n[^\n]*portable, torch"):
        native.enabled()
