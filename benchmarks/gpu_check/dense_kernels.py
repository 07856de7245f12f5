"""The GPU's kernels of a model's dense part, each by itself on random activations, against the CPU's parts bit for bit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import device_calls as calls
import torch
from one_layer import Build
from torch import Tensor

from dali.compiled import library
from dali.engine.sampling import SamplingParams, likeliest
from dali.kernels import native
from dali.kernels.formats import FORMATS, Format, get_format, round_up
from dali.kernels.gpu.compiler import SOURCE
from kernels.packed import random_matrix

F32, BF16 = torch.float32, torch.bfloat16
HALVES, EPSILON = 1, 1e-6  # how heads turn (source/turn.cuh)
# Keys that are summed in one go.
(PART,) = map(int, re.findall(r"PART = (\d+)", (SOURCE / "calls.h").read_text()))
PIECE, MOST, ROOM = 1024, 64, 256  # logits that a warp looks at; that are wanted; that there is room for
VOCABULARY = 40000
LINEARS = tuple(FORMATS)
FEW_ROWS = 96  # of linears in formats that dense parts seldom have: no row is computed with another
NUMBERS = {F32: 0, BF16: 1}  # of dtypes, as calls have them
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Compared = tuple[int, int]  # values that differ in any bit, of so many


@dataclass(frozen=True)
class Sizes:
    """Of a model. `normed`: heads are; `biased`: linears and routers; `sinks`: attention has them; window: tokens, 0 for all."""

    hidden: int
    heads: int
    kv_heads: int
    width: int
    experts: int
    top_k: int
    intermediate: int
    normed: bool = False
    biased: bool = False
    sinks: bool = False
    window: int = 0
    lengths: tuple[int, ...] = (1, 40, 1100)  # of the sequences, in turn


SIZES = {
    "Qwen3-30B-A3B": Sizes(2048, 32, 4, 128, 128, 8, 768, normed=True),
    "gpt-oss-20b": Sizes(2880, 64, 8, 64, 32, 4, 2880, biased=True, sinks=True, window=128),
}


class Panel:
    """Activations as linears read them, on the GPU: integers with their scales and sums, and floats; poisoned."""

    def __init__(self, rows: int, columns: int, place: torch.device) -> None:
        self.parts = [
            torch.full((rows, columns), 99, dtype=torch.int8, device=place),
            torch.full((rows, columns // 32), float("nan"), device=place),
            torch.full((rows, columns // 32), -(2**31), dtype=torch.int32, device=place),
            torch.full((rows, columns), float("nan"), device=place),
        ]
        self.columns = columns
        self.call = calls.Panel(*map(address, self.parts), columns)


class DenseKernels:
    """The kernels on one GPU, and what they are called with for a model of these sizes."""

    def __init__(self, gpu: Any, build: Build, sizes: Sizes) -> None:
        self._gpu, self._build, self.sizes = gpu, build, sizes
        self._modules: dict[Any, Any] = {}
        self._random = torch.Generator().manual_seed(sizes.hidden)

    def compare(self, tokens: int, dtype: torch.dtype) -> Iterator[tuple[str, Compared]]:
        """Kernel by kernel."""
        for format in LINEARS:
            yield f"linear {format}", self.linears(get_format(format), tokens, dtype)
        yield "add_norm", self.sums(tokens, dtype)
        yield "turn, attend, merge", self.attention(tokens, dtype)
        yield "route", self.router(tokens, dtype)
        yield "gate_up", self.gate_up(tokens, dtype)
        yield "share", self.share(tokens, dtype)
        yield "highest", self.highest(tokens, dtype)

    def linears(self, format: Format, tokens: int, dtype: torch.dtype) -> Compared:
        """The three of attention."""
        sizes, columns = self.sizes, self.sizes.hidden
        rows = [sizes.heads * sizes.width, *[sizes.kv_heads * sizes.width] * 2]
        if format.name != "w8":
            rows = [min(of, FEW_ROWS) for of in rows]
        packed = [random_matrix(of, columns, format, seed) for seed, of in enumerate(rows)]
        biases = [self._draw(of) if sizes.biased else None for of in rows]
        x = self._draw(tokens, columns).to(dtype)
        wanted = [
            native.Linear(one, of, columns, format, bias)(x)
            for one, of, bias in zip(packed, rows, biases, strict=True)
        ]
        matrix = calls.Matrix(0, 0, round_up(columns, format.block), format.scale_plane_bytes(columns))
        panel = self._gathered(x, matrix.columns)
        outs = [self._poisoned(one) for one in wanted]
        there = [(self._put(one), self._put(bias)) for one, bias in zip(packed, biases, strict=True)]
        products = (calls.Product * 3)()
        for product, out, (one, bias), of in zip(products, outs, there, rows, strict=True):
            product.out, product.packed, product.bias = address(out), address(one), address(bias)
            product.matrix = calls.Matrix(0, of, matrix.columns, matrix.plane)
        call = calls.LinearCall(products, panel.call, 3, tokens, NUMBERS[dtype], 1.0)
        macros = {"FORMAT": list(FORMATS).index(format.name), "PASSES": 1 if tokens <= 8 else 2}
        self._run("linear", call, sum(-(-of // 32) for of in rows), "linear", macros)
        return self._differing(outs, wanted)

    def sums(self, tokens: int, dtype: torch.dtype) -> Compared:
        """A residual stream, what a part adds to it, and the norm of the sum."""
        residual, part = (self._draw(tokens, self.sizes.hidden, scale=3).to(dtype) for _ in range(2))
        weight = self._draw(self.sizes.hidden).to(dtype)
        wanted = residual + part, native.rms_norm(residual + part, weight, EPSILON)
        outs = [self._poisoned(one) for one in wanted]
        there = [self._put(one) for one in (residual, part, weight)]
        columns = round_up(self.sizes.hidden, 256)
        panel, expected = Panel(tokens, columns, self._gpu.place), self._gathered(wanted[1], columns)
        call = calls.AddNormCall(*map(address, there[:2]), None, *map(address, outs), panel.call)
        call.after = calls.NormPart(address(there[2]), EPSILON)
        call.rows, call.width, call.dtype, call.scale = tokens, self.sizes.hidden, NUMBERS[dtype], 1.0
        self._run("add_norm", call, tokens)
        return self._differing([*outs, *panel.parts], [*wanted, *expected.parts])

    def attention(self, tokens: int, dtype: torch.dtype) -> Compared:
        """Heads normed, turned and kept; then what each token's query makes of its sequence."""
        sizes, width = self.sizes, self.sizes.width
        query, keys, values = (
            self._draw(tokens, heads, width).to(dtype)
            for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads)
        )
        lengths = [sizes.lengths[token % len(sizes.lengths)] for token in range(tokens)]
        caches = [
            [self._draw(sizes.kv_heads, length + 3, width).to(dtype) for _ in range(2)] for length in lengths
        ]
        weights = [self._draw(width).to(dtype) if sizes.normed else None for _ in range(2)]
        angles = self._draw(tokens, width // 2).repeat(1, 2)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        sinks = self._draw(sizes.heads) if sizes.sinks else None
        places = [(length - 1, max(0, length - sizes.window) if sizes.window else 0) for length in lengths]
        caches_there = [[self._put(one.clone()) for one in cache] for cache in caches]
        there = [self._put(one.clone()) for one in (query, keys, values)]

        turned = [
            turn(normed(one, weight), cos, sin) for one, weight in zip((query, keys), weights, strict=True)
        ]
        wanted = torch.full_like(query, float("nan"))
        kept = [
            (row, k.data_ptr(), v.data_ptr(), k.shape[1], *place, False)
            for row, ((k, v), place) in enumerate(zip(caches, places, strict=True))
        ]
        scale = width**-0.5
        native.attend(*(one.transpose(0, 1) for one in (*turned, values)), kept, scale, sinks, wanted)

        table = (calls.KeptToken * tokens)(
            *(
                calls.KeptToken(address(k), address(v), k.shape[1], *place, row)
                for row, ((k, v), place) in enumerate(zip(caches_there, places, strict=True))
            )
        )
        table_there = self._put(torch.frombuffer(bytearray(table), dtype=torch.uint8))
        others = [self._put(one) for one in (cos, sin, *weights, sinks)]
        call = calls.TurnCall(*map(address, (*there, table_there, *others[:2])))
        call.query_norm, call.key_norm = (calls.NormPart(address(one), EPSILON) for one in others[2:4])
        call.turning, call.turned, call.given, call.rotary_dtype = HALVES, width, width, NUMBERS[dtype]
        call.tokens, call.heads, call.kv_heads = tokens, sizes.heads, sizes.kv_heads
        call.key_width, call.value_width, call.dtype, call.value_scale = width, width, NUMBERS[dtype], 1.0
        self._run("turn", call, tokens * (sizes.heads + 2 * sizes.kv_heads))
        out, panel = self._attend(there, table_there, others[4], (tokens, max(lengths), scale), dtype)
        expected = self._gathered(wanted.flatten(1), panel.columns)
        found = [there[0], out, *panel.parts, *(one for cache in caches_there for one in cache)]
        return self._differing(
            found, [turned[0], wanted, *expected.parts, *(one for cache in caches for one in cache)]
        )

    def _attend(
        self,
        there: Sequence[Tensor],
        table: Tensor,
        sinks: Tensor | None,
        of: tuple[int, int, float],
        dtype: torch.dtype,
    ) -> tuple[Tensor, Panel]:
        """of: tokens, the longest sequence, the scale."""
        sizes, (tokens, longest, scale) = self.sizes, of
        heads, width, parts = sizes.heads, sizes.width, (longest - 1) // PART + 1
        items, place = tokens * heads * parts, self._gpu.place
        out, panel = self._poisoned(there[0]), Panel(tokens, heads * width, place)
        work = [torch.full((items, each), float("nan"), device=place) for each in (PART, 1, 1, width)]
        numbers = tokens, parts, heads, sizes.kv_heads, width, width, NUMBERS[dtype], scale
        call = calls.AttendCall(*map(address, (*there, out, table, sinks, *work)), panel.call, *numbers)
        self._run("attend", call, items)
        self._run("merge", call, tokens * heads)
        return out, panel

    def router(self, tokens: int, dtype: torch.dtype) -> Compared:
        sizes = self.sizes
        x = self._draw(tokens, sizes.hidden).to(dtype)
        weight = self._draw(sizes.experts, sizes.hidden, scale=0.05).to(dtype)
        bias = self._draw(sizes.experts).to(dtype) if sizes.biased else None
        how = native.Routing(sizes.top_k, F32, normalise=True, by_logit=sizes.biased)
        _, wanted, wanted_ids = native.Router(weight, how, bias)(x)
        given = [self._put(one) for one in (x, weight, bias)]
        work = [torch.full((tokens, sizes.experts), float("nan"), device=self._gpu.place) for _ in range(3)]
        weights, ids = self._poisoned(wanted.float()), self._poisoned(wanted_ids)
        call = calls.RouteCall(*map(address, (*given, None, *work, weights, ids)))
        call.tokens, call.hidden, call.experts, call.top_k = tokens, sizes.hidden, sizes.experts, sizes.top_k
        call.by_logit, call.normalise, call.scale = int(how.by_logit), int(how.normalise), how.scale
        call.groups, call.kept_groups, call.judged = how.groups, how.kept_groups, how.judged
        call.dtype = call.weight_dtype = call.bias_dtype = NUMBERS[dtype]
        self._run("route_products", call, tokens * sizes.experts)
        self._run("route_choose", call, tokens)
        return self._differing([weights, ids], [wanted.float(), wanted_ids])

    def gate_up(self, tokens: int, dtype: torch.dtype) -> Compared:
        width = self.sizes.intermediate
        both = self._draw(tokens, 2 * width, scale=4).to(dtype)
        gate, up = both[:, :width], both[:, width:]
        columns = round_up(width, 256)
        expected = self._gathered(native.activate(gate.contiguous(), "silu") * up, columns)
        there, panel = self._put(both), Panel(tokens, columns, self._gpu.place)
        start = there.data_ptr()
        call = calls.GateUpCall(start, start + width * both.itemsize, panel.call)
        call.tokens, call.width, call.stride, call.dtype = tokens, width, 2 * width, NUMBERS[dtype]
        self._run("gate_up", call, tokens * (columns // 32))
        return self._differing(panel.parts, expected.parts)

    def share(self, tokens: int, dtype: torch.dtype) -> Compared:
        hidden = self.sizes.hidden
        part, shared, x = (self._draw(tokens, hidden, scale=2).to(dtype) for _ in range(3))
        gate = self._draw(hidden, scale=0.05).to(dtype)
        wanted = part + shared * native.sigmoid(native.gate_logits(x, gate))
        there = [self._put(one.clone()) for one in (part, shared, x, gate)]
        call = calls.ShareCall(*map(address, there), tokens, hidden, NUMBERS[dtype], NUMBERS[dtype])
        self._run("share", call, tokens * -(-hidden // 32))
        return self._differing([there[0]], [wanted])

    def highest(self, rows: int, dtype: torch.dtype) -> Compared:
        """The MOST highest logits of rows, which are few enough to be all there."""
        place, pieces = self._gpu.place, -(-VOCABULARY // PIECE)
        logits = self._draw(rows, VOCABULARY, scale=3).to(dtype)
        wanted = [likeliest(row, SamplingParams(top_k=MOST)) for row in logits]
        shapes = (rows, pieces, MOST), (rows, pieces), (rows, pieces), (rows,)
        work = [torch.zeros(shape, dtype=torch.int32, device=place) for shape in shapes]
        ids = torch.full((rows, ROOM), -1, dtype=torch.int32, device=place)
        values = torch.full((rows, ROOM), float("nan"), device=place)
        counts = torch.full((rows,), -1, dtype=torch.int32, device=place)
        there, most = self._put(logits), torch.full((rows,), MOST, dtype=torch.int32, device=place)
        call = calls.HighestCall(*map(address, (there, most, *work, ids, values, counts)))
        call.rows, call.width, call.dtype = rows, VOCABULARY, NUMBERS[dtype]
        self._run("highest_of_pieces", call, rows * pieces)
        self._run("highest_of_rows", call, rows)
        self._run("collect_highest", call, rows * pieces)
        sizes = torch.tensor([len(of) for _, of in wanted], dtype=torch.int32)
        found = [one for row, size in enumerate(sizes) for one in (values[row, :size], ids[row, :size])]
        expected = [one for high, of in wanted for one in (high.float(), of.int())]
        return self._differing([counts, *found], [sizes, *expected])

    def _gathered(self, x: Tensor, columns: int) -> Panel:
        """x [rows, width] as a panel."""
        panel, there = Panel(len(x), columns, self._gpu.place), self._put(x.contiguous())
        call = calls.GatherCall(address(there), panel.call, len(x), x.shape[1], NUMBERS[x.dtype])
        for format in ("w8", "f32"):
            macros = {"FORMAT": list(FORMATS).index(format), "PASSES": 1}
            self._run("gather_rows", call, len(x) * (columns // 32), "linear", macros)
        return panel

    def _run(
        self, kernel: str, call: Any, warps: int, file: str = "common", macros: dict[str, int] | None = None
    ) -> None:
        """And wait until it is through: what it reads may go then."""
        macros = macros or {}
        key = file, *macros.values()
        if key not in self._modules:
            self._modules[key] = library.GpuModule(self._gpu.native, self._build(file, macros))
        self._modules[key].launch(kernel, bytes(call), warps, self._gpu.queue())
        self._gpu.hand_over()
        if self._gpu.place.type == "cuda":
            torch.cuda.synchronize(self._gpu.place)

    def _draw(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self._random) * scale

    def _put(self, tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.to(self._gpu.place)

    def _poisoned(self, like: Tensor) -> Tensor:
        return torch.full_like(like, float("nan") if like.is_floating_point() else -1, device=self._gpu.place)

    def _differing(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> Compared:
        pairs = [
            (one.cpu().view(WORDS[one.itemsize]), other.cpu().contiguous().view(WORDS[other.itemsize]))
            for one, other in zip(found, expected, strict=True)
        ]
        return sum(int((one != other).sum()) for one, other in pairs), sum(one.numel() for one, _ in pairs)


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def normed(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else native.rms_norm(x, weight, EPSILON)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [tokens, heads, width] turned by cos and sin [tokens, width], both of its dtype, rounded as transformers rounds."""
    half = x.shape[-1] // 2
    other = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos[:, None] + other * sin[:, None]
