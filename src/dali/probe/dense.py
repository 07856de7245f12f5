"""Seconds of what a step computes beside experts: linears, attention, routers, and calls that have nothing to compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from dali.hardware.host import NORMED
from dali.hardware.profile import Table
from dali.kernels import native
from dali.kernels.formats import get_format
from dali.probe.experts import LONGEST, Measured, matrix
from dali.probe.reading import Clock, Reading, check_order, many, repeat
from dali.store.arena import Arena

FORMATS = ("w8", "w4", "q4k", "q6k", "bf16")  # the last by torch, as models that are not packed have them
SHAPES = ((512, 2048), (4096, 2880), (256, 512))  # rows, columns
TOKENS = (1, 2, 4, 8, 16, 64, 512)
HEADS, KV_HEADS, WIDTH = 32, 4, 128
CONTEXT, PROMPT = 4096, 256
DECODING = ((8, 8), (HEADS, KV_HEADS))  # heads, and those of keys and values
NOTHING = 1e-15  # seconds
LONGER = 1.01  # times as long, at least, as what takes longer by more than noise
ROUTED, HIDDEN = 128, 2048  # experts that a router chooses from, and what of
TINY = (16, 32)
PASSED = (8, 32, 128, 256, 512)  # tokens of a tensor: of float32 128 KiB to 8 MiB
PASSED_AS = (torch.float32, torch.bfloat16)


def tables(pool: Arena, clock: Clock, source: str) -> Iterator[Callable[[], Table]]:
    """What measures a table: for each format and shape, and for a router."""
    for format in FORMATS:
        for rows, columns in SHAPES:
            yield partial(_table, pool, format, rows, columns, clock, source)
    yield partial(_router, clock, source)


def call_seconds(clock: Clock) -> Reading:
    """Of a call over all threads that has next to nothing to compute."""
    rows, columns = TINY
    linear = native.Linear(matrix(rows, columns, get_format("w8")), rows, columns, get_format("w8"))
    x = torch.randn(1, columns)

    def seconds() -> float:
        begin = clock()
        for _ in range(100):
            linear(x)
        return (clock() - begin) / 100

    return repeat("a call's own time", seconds, clock)


def decoding_attention(pool: Arena, clock: Clock) -> tuple[Reading, Reading, str]:
    """While decoding: bytes a second of keys and values that a token attends to, seconds of a score beside that, and what is to
    be said of them, "" for nothing. Two shapes tell them apart, with as many queries' heads as those of keys and with more:
    seconds = bytes x a + scores x b."""
    (one, bytes_one, scores_one), (more, bytes_more, scores_more) = (
        (_decoding(pool, clock, heads, groups), 4 * groups * CONTEXT * WIDTH, heads * CONTEXT)
        for heads, groups in DECODING
    )
    both = bytes_one * scores_more - bytes_more * scores_one
    a = (one.value * scores_more - more.value * scores_one) / both
    b = (bytes_one * more.value - bytes_more * one.value) / both
    note = ""
    if a <= 0 or b <= 0:
        a, b = more.value / bytes_more, NOTHING
        note = (
            "The two shapes of decoding's attention contradict each other, so that all of its time was put down to the bytes of "
            "keys and values. The machine was not quiet."
        )
    return Reading(1 / a, one.spread, one.count), Reading(b, more.spread, more.count), note


def _decoding(pool: Arena, clock: Clock, heads: int, groups: int) -> Reading:
    values = pool.all.flatten().view(torch.bfloat16)
    each = groups * CONTEXT * WIDTH
    values.fill_(0.01)
    places = cycle(range(0, len(values) - 2 * each + 1, 2 * each))
    query, own, out = _rows(1, heads, groups)

    def seconds() -> float:
        keys = values.data_ptr() + 2 * next(places)
        token = (0, keys, keys + 2 * each, CONTEXT, CONTEXT - 1, 0, False)
        begin = clock()
        native.attend(query, own, own, [token], WIDTH**-0.5, None, out)
        return clock() - begin

    seconds()
    return repeat("decoding's attention", many(seconds), clock)


def prompt_attention(clock: Clock) -> tuple[Reading, Reading, str]:
    """Of prompts: operations a second of their attention, seconds of a value of a query beside that, and what is to be said of
    them, "" for nothing. Tokens that attend to many before them and tokens that have none tell them apart:
    seconds = operations / rate + values x b."""
    late, early = (_prompt(clock, before) for before in (CONTEXT - PROMPT, 0))
    more, own = 4 * HEADS * WIDTH * PROMPT * (CONTEXT - PROMPT), 2 * HEADS * WIDTH * PROMPT * (PROMPT + 1)
    values, slower, note = HEADS * WIDTH * PROMPT, late.value - early.value, ""
    if late.value > LONGER * early.value and (query := (early.value - slower * own / more) / values) > 0:
        rate = more / slower
    else:  # noise: all of it by operations
        rate, query = (more + own) / late.value, NOTHING
        note = (
            "A prompt's attention took hardly longer, or far too long, with many tokens before it, so that all of its time was "
            "put down to its operations. The machine was not quiet."
        )
    return Reading(rate, late.spread, late.count), Reading(query, early.spread, early.count), note


def _prompt(clock: Clock, before: int) -> Reading:
    """Seconds of tokens that attend to each other and to so many before them."""
    keys, values = (torch.zeros(KV_HEADS, CONTEXT, WIDTH, dtype=torch.bfloat16) for _ in range(2))
    query, own, out = _rows(PROMPT)
    first = (0, keys.data_ptr(), values.data_ptr(), CONTEXT, before, 0, False)

    def seconds() -> float:
        begin = clock()
        native.attend_prompt(query, own, own, first, PROMPT, None, WIDTH**-0.5, None, out)
        return clock() - begin

    seconds()
    return repeat("a prompt's attention", many(seconds), clock)


def pass_bandwidths(pool: Arena, dtype: torch.dtype, clock: Clock) -> dict[int, Reading]:
    """Bytes a second by the bytes of a tensor: of norms of heads, from one tensor to another, at one place after another, as
    what a prompt's layers hand on is too large for the nearest caches, and is another core's."""
    values, found = pool.all.flatten().view(dtype), {}
    weight, item = torch.ones(WIDTH, dtype=dtype), dtype.itemsize
    values.fill_(0.01)
    for tokens in PASSED:
        each = tokens * HEADS * WIDTH
        tensors = cycle(values[: len(values) // each * each].view(-1, tokens, HEADS, WIDTH))
        seconds = repeat("norms", many(partial(_norming, tensors, weight, clock)), clock)
        found[item * each] = seconds.under(NORMED * item * each)
    return found


def _norming(tensors: Iterator[Tensor], weight: Tensor, clock: Clock) -> float:
    x, out = next(tensors), next(tensors)
    begin = clock()
    native.rms_norm(x, weight, 1e-6, out)
    return clock() - begin


def _rows(tokens: int, heads: int = HEADS, groups: int = KV_HEADS) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys (or values) and outputs of so many tokens."""
    kind = torch.bfloat16
    query, own = (torch.randn(count, tokens, WIDTH).to(kind) for count in (heads, groups))
    return query, own, torch.empty(tokens, heads, WIDTH, dtype=kind)


def _linears(pool: Arena, format: str, rows: int, columns: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """The same linear at one place after another, over and over."""
    memory, kind = pool.all.flatten(), get_format(format)
    if kind.dtype is not None:
        count = len(memory) // (rows * columns * kind.dtype.itemsize)
        weights = (
            memory[: count * rows * columns * kind.dtype.itemsize].view(kind.dtype).view(count, rows, columns)
        )
        weights.fill_(0.01)
        return cycle([_plain(weight) for weight in weights])
    packed = matrix(rows, columns, kind)
    count = len(memory) // len(packed)
    places = memory[: count * len(packed)].view(count, len(packed))
    places.copy_(packed.expand(count, len(packed)))
    return cycle([native.Linear(place, rows, columns, kind) for place in places])


def _plain(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.nn.functional.linear(x, weight)


def _table(pool: Arena, format: str, rows: int, columns: int, clock: Clock, source: str) -> Table:
    kind, linears = get_format(format), _linears(pool, format, rows, columns)
    found: Measured = {}
    for tokens in TOKENS:
        if found and found[max(found)].value * tokens / max(found) > LONGEST:
            break
        x = torch.randn(tokens, columns).to(torch.bfloat16)
        found[tokens] = _reading(f"{format} linears", partial(_next, linears, x), clock)
    nbytes = rows * columns * kind.dtype.itemsize if kind.dtype else kind.matrix_bytes(rows, columns)
    return _as_table("linear", format, columns, rows, found, nbytes, source)


def _next(linears: Iterator[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    return next(linears)(x)


def _router(clock: Clock, source: str) -> Table:
    weight = torch.randn(ROUTED, HIDDEN).to(torch.bfloat16)
    router = native.Router(weight, native.Routing(8, torch.float32, normalise=True))
    found: Measured = {}
    for tokens in TOKENS:
        x = torch.randn(tokens, HIDDEN).to(torch.bfloat16)
        found[tokens] = _reading("a router", partial(router, x), clock)
    return _as_table("router", "bf16", HIDDEN, ROUTED, found, weight.nbytes, source)


def _reading(what: str, call: Callable[[], object], clock: Clock) -> Reading:
    def seconds() -> float:
        begin = clock()
        call()
        return clock() - begin

    call()
    return repeat(what, many(seconds), clock, seconds=0.06)


def _as_table(
    kind: str, format: str, columns: int, rows: int, found: Measured, nbytes: int, source: str
) -> Table:
    check_order(f"{format} {kind}", found)
    points = tuple((tokens, reading.value) for tokens, reading in found.items())
    spread = max(reading.spread for reading in found.values())
    return Table(
        "cpu", format, columns, rows, 1, points, "measured", source, kind=kind, bytes=nbytes, spread=spread
    )
