"""The logits that a GPU sends of a row: those that engine.sampling.likeliest keeps."""

from __future__ import annotations

import device_calls as calls
import pytest
import shimmed
import torch
from torch import Tensor

from dali.engine.sampling import SamplingParams, likeliest

ROOM = 256
NAN, INFINITY = float("nan"), float("inf")


def highest(folder, logits: Tensor, most: list[int]) -> list[tuple[int, Tensor, Tensor]]:
    """Of each row how many there are, the ids and the values of as many as there is room for."""
    rows, width = logits.shape
    pieces = -(-width // 1024)
    shapes = (rows, pieces, 64), (rows, pieces), (rows, pieces), (rows,)
    scratch = [torch.full(shape, -7, dtype=torch.int32) for shape in shapes]
    ids, counts = (
        torch.full((rows + 1, ROOM), -1, dtype=torch.int32),
        torch.full((rows,), -1, dtype=torch.int32),
    )
    values, wanted = torch.full((rows + 1, ROOM), NAN), torch.tensor(most, dtype=torch.int32)
    tensors = logits, wanted, *scratch, ids, values, counts
    call = calls.HighestCall(
        *(each.data_ptr() for each in tensors), rows, width, shimmed.DTYPES[logits.dtype]
    )
    kernels = shimmed.common(folder)
    shimmed.run(kernels.run_highest_of_pieces, call, rows * pieces)
    shimmed.run(kernels.run_highest_of_rows, call, rows)
    shimmed.run(kernels.run_collect_highest, call, rows * pieces)
    kept = counts.clamp(max=ROOM).tolist()
    for row, count in enumerate(kept):
        assert (ids[row, count:] == -1).all()
    assert (ids[rows] == -1).all()
    return [(int(counts[row]), ids[row, :count], values[row, :count]) for row, count in enumerate(kept)]


def check(folder, logits: Tensor, most: list[int]) -> None:
    for row, (count, ids, values) in enumerate(highest(folder, logits, most)):
        wanted, wanted_ids = likeliest(logits[row], SamplingParams(top_k=most[row]))
        assert count == len(wanted_ids)
        assert torch.equal(ids.long(), wanted_ids[:ROOM])
        assert torch.equal(values.nan_to_num(9e9), wanted[:ROOM].float().nan_to_num(9e9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [100, 1024, 5003, 40000])
def test_random_rows(folder, dtype, width):
    generator = torch.Generator().manual_seed(width)
    check(folder, (torch.randn(4, width, generator=generator) * 3).to(dtype), [1, 2, 40, 64])


def test_ties_in_and_across_pieces(folder):
    generator = torch.Generator().manual_seed(0)
    few = torch.randint(-3, 3, (5, 4000), generator=generator).float()  # ties beyond the room
    check(folder, few, [1, 5, 64, 63, 2])
    some = torch.randn(3, 3000, generator=generator)
    some[0, [5, 700, 1500, 2999]] = 9.0
    some[1, 1024:1100] = 8.0
    some[2, ::40] = 7.0
    check(folder, some, [2, 3, 64])
    check(folder, torch.tensor([[0.0, -0.0, -1.0] * 20]), [1])


def test_numbers_at_the_edges(folder):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 2100, generator=generator)
    logits[0, [3, 2050]] = NAN
    logits[1, :70] = NAN
    logits[2, 40] = INFINITY
    logits[3] = -INFINITY
    logits[4, 3:] = -INFINITY
    logits[5] = 0.0
    check(folder, logits, [1, 5, 2, 3, 10, 1])
    check(folder, logits, [40, 64, 64, 64, 3, 64])


def test_rows_of_which_nothing_is_wanted(folder):
    logits = torch.arange(3000.0).view(3, 1000)
    found = highest(folder, logits, [0, 2, 0])
    assert [count for count, _, _ in found] == [0, 2, 0]
    assert found[1][1].tolist() == [998, 999]
