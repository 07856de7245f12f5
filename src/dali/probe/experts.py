"""Seconds of routed experts, by format, shape and tokens, from memory that no cache holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from dali.hardware import rates
from dali.hardware.cost import interpolate
from dali.hardware.profile import Table
from dali.kernels import native
from dali.kernels.activation import Activation
from dali.kernels.expert import ExpertLayout, ExpertShape
from dali.kernels.formats import TILE_ROWS, Format, assemble, get_format, lines, round_up
from dali.probe.reading import Clock, Reading, check_order, many, repeat
from dali.store.arena import Arena

FORMATS = ("w4", "w8", "q4k", "q6k", "mxfp4", "iq3_xxs", "bf16")  # others go by these: hardware/rates.py
SHAPES = ((2048, 768), (2880, 2880), (512, 256))
"""Hidden, intermediate: of Qwen3-30B-A3B and gpt-oss-20b, and so small that what a call takes by itself shows."""
OTHERS = ((2048, 1024), (1536, 512), (4096, 1536))  # that are predicted, and measured to see how well
CHECKED = (1, 8, 64)  # tokens of those
CHECKED_FORMATS = ("w4", "q6k")
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
TURNS = 60  # calls of a reading of what a call takes
LONGEST = 0.2  # seconds of one call; longer ones are left out
MATRICES = 3

Measured = dict[int, Reading]  # tokens -> seconds of one expert


@dataclass
class Experts:
    """Experts of one layout throughout `pool`, and calls of the kernel on them in turn. `clock` is what times them."""

    pool: Arena
    layout: ExpertLayout
    clock: Clock
    compute: Callable[..., None] = native.compute_experts
    _next: int = 0
    _records: Tensor = field(init=False)
    _made: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor, list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = self.layout.record_bytes
        count = self.pool.nbytes // size
        self._records = self.pool.all.flatten()[: count * size].view(count, size)
        self._records.copy_(record(self.layout).expand(count, size))

    def seconds(self, count: int, tokens: int) -> float:
        """Of one expert, in a call of `count` that have so many tokens each."""
        hidden, rows, slots, offsets = self._call(count, tokens)
        experts = [self._records[(self._next + each) % len(self._records)] for each in range(count)]
        self._next = (self._next + count) % len(self._records)
        begin = self.clock()
        self.compute(self.layout, experts, offsets, slots, hidden, rows)
        return (self.clock() - begin) / count

    def read(self, tokens: int) -> Reading:
        count = at_once(tokens)
        what = f"{self.layout.format_name} experts with {tokens} tokens"
        self.seconds(count, tokens)  # memory for the step, once
        return repeat(what, many(lambda: self.seconds(count, tokens), count), self.clock)

    def _call(self, count: int, tokens: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Activations, rows for the results, and which token is whose; made once for calls that are alike."""
        if (count, tokens) not in self._made:
            x = torch.randn(count * tokens, self.layout.shape.hidden)
            offsets = list(range(0, len(x) + 1, tokens))
            self._made = {(count, tokens): (x, torch.empty_like(x), torch.arange(len(x)), offsets)}
        return self._made[count, tokens]


def at_once(tokens: int) -> int:
    """Experts of one call: as many as a step has that gives each so many tokens, and takes no longer for that."""
    return 8 if tokens <= 8 else 4 if tokens <= 32 else 2


def call_seconds(pool: Arena, clock: Clock) -> Reading:
    """Of a call, beside what its experts take: calls of one and of several in turn, of small ones that it shows beside."""
    some, several = Experts(pool, layout_of("w4", *SHAPES[-1]), clock), at_once(1)

    def difference() -> float:
        turns = [(some.seconds(1, 1), some.seconds(several, 1)) for _ in range(TURNS)]
        one, each = (statistics.median(found) for found in zip(*turns, strict=True))
        return float(one - each) * several / (several - 1)

    difference()  # memory for the step, and threads awake
    return repeat("a call of experts", difference, clock)


def layout_of(format: str, hidden: int, intermediate: int) -> ExpertLayout:
    return ExpertLayout(ExpertShape(hidden, intermediate, Activation("silu")), get_format(format))


def record(layout: ExpertLayout) -> Tensor:
    """A random expert."""
    found = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    for name, (rows, columns) in layout.shape.matrices.items():
        layout.part(found, name).copy_(matrix(rows, columns, layout.formats[name]))
    return found


def matrix(rows: int, columns: int, format: Format) -> Tensor:
    """A random packed matrix: one tile over and over, as time depends on no value."""
    columns, generator = round_up(columns, format.block), torch.Generator().manual_seed(0)
    if format.dtype is not None:
        tile = lines((torch.randn(TILE_ROWS, columns, generator=generator) / 64).to(format.dtype)).flatten()
    else:
        groups = columns // 32
        width = format.group_width if format.coded else 32
        most = 256 if format.coded else 2**format.bits
        quants = torch.randint(0, most, (TILE_ROWS, groups, width), dtype=torch.uint8, generator=generator)
        blocks = columns // format.block
        scales = [_scale(part.dtype, blocks * part.values) for part in format.scales]
        tile = assemble(quants, scales, format)
    return tile.repeat(round_up(rows, TILE_ROWS) // TILE_ROWS)


def _scale(dtype: torch.dtype, values: int) -> Tensor:
    """Small and finite, whatever the format makes of it."""
    value = 2**-8 if dtype.is_floating_point else 120 if dtype == torch.uint8 else 1
    return torch.full((TILE_ROWS, values), value, dtype=dtype)


def tables(format: str, pool: Arena, clock: Clock, source: str, call: float) -> Iterator[Callable[[], Table]]:
    """What measures a table, by all threads: for each shape. `call`: as `without_call` takes it."""

    def measure(layout: ExpertLayout) -> Table:
        return table(layout, without_call(read_points(Experts(pool, layout, clock).read), call), source)

    for hidden, intermediate in SHAPES:
        yield partial(measure, layout_of(format, hidden, intermediate))


def read_points(read: Callable[[int], Reading], tokens: Sequence[int] = TOKENS) -> Measured:
    """Readings by tokens, until the next call would take too long."""
    found: Measured = {}
    for count in tokens:
        if found:
            last = max(found)
            if found[last].value * at_once(last) * count / last > LONGEST:
                break
        found[count] = read(count)
    return found


def without_call(found: Measured, call: float) -> Measured:
    """What an expert adds to a call that has others, which takes `call` seconds by itself; half of what was read at least."""
    return {
        tokens: replace(reading, value=max(reading.value - call / at_once(tokens), reading.value / 2))
        for tokens, reading in found.items()
    }


def table(layout: ExpertLayout, found: Measured, source: str, device: str = "cpu", beside: str = "") -> Table:
    shape = layout.shape
    check_order(f"{layout.format_name} experts", found)
    return Table(
        device,
        layout.format_name,
        shape.hidden,
        shape.intermediate,
        len(shape.matrices),
        tuple((tokens, reading.value) for tokens, reading in found.items()),
        "measured",
        source,
        beside=beside,
        bytes=layout.weight_bytes,
        spread=max(reading.spread for reading in found.values()),
    )


def check(format: str, tables: Sequence[Table], pool: Arena, clock: Clock, call: float) -> list[float]:
    """Errors of what `tables` predict for shapes they were not measured with, each as a share of what was measured; none where
    there is no table of the format. Best done right after the tables, so that it is the rule that is judged, and not the day."""
    errors: list[float] = []
    for hidden, intermediate in OTHERS:
        layout, parameters = layout_of(format, hidden, intermediate), MATRICES * hidden * intermediate
        points = rates.points(rates.alone(tables, "cpu", "experts"), format, parameters, layout.weight_bytes)
        if points is not None:
            some, predicted = Experts(pool, layout, clock), interpolate(points, max(CHECKED))
            found = without_call({tokens: some.read(tokens) for tokens in CHECKED}, call)
            errors += [abs(predicted[tokens] / found[tokens].value - 1) for tokens in CHECKED]
    return errors
