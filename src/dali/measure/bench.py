"""How fast a loaded model is: prompts and generation apart, as llama-bench measures them, beside what memory allows.

Over an accelerator nothing is told of memory and shares, and times are those of the device's clock: of a simulated one, modelled.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import torch

from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
from dali.engine.sequence import Sequence
from dali.engine.text.text import Text
from dali.errors import UsageError, parameter
from dali.fused.dense import PackedLinear
from dali.hardware.free_memory import available_ram
from dali.kernels import native
from dali.llm import LLM
from dali.offload.vram import state_size
from dali.units import size

READ_BYTES = 2**28  # of a read that measures bandwidth: far beyond any cache, some 10 ms
READS = 4  # of which the fastest counts: a ceiling must not be lowered by whatever else ran for a moment
PARTS = ("experts", "dense", "attention", "rest")


@dataclass(frozen=True)
class Test:
    """`prompt` tokens computed at once, or `generate` tokens one after another, the other is 0; of `batch` sequences together."""

    prompt: int
    generate: int
    batch: int = 1

    @property
    def name(self) -> str:
        one = f"pp{self.prompt}" if self.prompt else f"tg{self.generate}"
        return one if self.batch == 1 else f"{one} x {self.batch}"

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return self.batch * (self.prompt or self.generate)


@dataclass
class Measurement:
    """A test's repetitions. Bandwidth, roofline and shares are None where the compiled kernels do not serve."""

    test: Test
    seconds: list[float] = field(default_factory=list)  # a repetition each
    token_bytes: float | None = None  # weights read a token; None for prompts, whose tokens share them
    bandwidths: list[float] = field(
        default_factory=list
    )  # bytes/s: the most right before or after each repetition
    shares: dict[str, float] | None = None  # of the time: PARTS; "rest" is Python and torch

    @property
    def speeds(self) -> list[float]:
        """Tokens a second of each repetition."""
        return [self.test.tokens / seconds for seconds in self.seconds]

    @property
    def roofline(self) -> float | None:
        """The speed over the one at which memory is read without a pause: the median over repetitions."""
        if self.token_bytes is None or not self.bandwidths:
            return None
        pairs = zip(self.speeds, self.bandwidths, strict=True)
        return statistics.median(speed * self.token_bytes / bandwidth for speed, bandwidth in pairs)


def check(llm: LLM, tests: Many[Test]) -> None:
    """UsageError for a test that the context, or memory, has no room for."""
    for test in tests:
        length = max(test.prompt, test.generate)
        if length > llm.ctx_size:
            raise UsageError(
                f"{test.name} does not fit a context of {llm.ctx_size} tokens.",
                f"Give at most {llm.ctx_size}, or a larger {parameter('ctx_size')} if the model allows.",
            )
        engine = llm.engine
        room = available_ram() if engine.budget is None else engine.budget.nbytes
        one = state_size(engine).nbytes(engine.reservation(length))
        if test.batch > 1 and test.batch * one > room:
            raise UsageError(
                f"{test.name} keeps {size(test.batch * one)} of keys and values, and there is room for {size(room)}.",
                f"Give {parameter('batch')} {max(room // one, 1)} or less, or fewer tokens.",
            )


def measure(
    ways: Many[Callable[[], LLM]], tests: Many[Test], repetitions: int
) -> Iterator[list[Measurement]]:
    """Each test, of each way to run one model: all of them once to warm up, then `repetitions` times in turns. A way gives the
    model as it then is. UsageError as `check`."""
    llm = ways[0]()
    check(llm, tests)
    bandwidth = Bandwidth(llm) if native.enabled() and llm.executor is None else None
    draws = [random.Random(0) for _ in ways]  # so that each computes the same tokens
    for test in tests:
        for way, draw in zip(ways, draws, strict=True):
            _run(way(), Test(test.prompt, min(test.generate, 4), test.batch), draw)
        benches = [_Bench(llm, test, bandwidth) for _ in ways]
        for _ in range(repetitions):
            for way, bench, draw in zip(ways, benches, draws, strict=True):
                bench.repeat(way(), draw)
        yield [bench.finished() for bench in benches]


class _Bench:
    """A test's repetitions on a model."""

    def __init__(self, llm: LLM, test: Test, bandwidth: Bandwidth | None) -> None:
        self._llm = llm
        self._found = Measurement(test)
        self._bandwidth = bandwidth
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._read = 0

    def repeat(self, llm: LLM, draw: random.Random) -> None:
        bandwidth, found = self._bandwidth, self._found
        before = bandwidth() if bandwidth else 0.0
        kernels, bytes_before = _kernel_seconds(llm), llm.telemetry.expert_bytes
        found.seconds.append(_run(llm, found.test, draw))
        for part, value in _kernel_seconds(llm).items():
            self._spent[part] += value - kernels[part]
        self._read += llm.telemetry.expert_bytes - bytes_before
        if bandwidth:
            found.bandwidths.append(max(before, bandwidth()))

    def finished(self) -> Measurement:
        found, spent = self._found, self._spent
        if self._bandwidth:
            total = sum(found.seconds)
            spent["rest"] = total - sum(spent.values())
            found.shares = {part: seconds / total for part, seconds in spent.items()}
        if found.test.generate:
            dense = dense_token_bytes(self._llm) / found.test.batch  # a step's sequences share them
            found.token_bytes = self._read / (len(found.seconds) * found.test.tokens) + dense
        return found


def _run(llm: LLM, test: Test, draw: random.Random) -> float:
    """Seconds of one repetition on random tokens, nothing kept from earlier ones."""
    llm.engine.forget()
    vocabulary = range(llm.model.config.get_text_config().vocab_size)
    params = SamplingParams(temperature=0, ignore_eos=True)
    sequences = []
    for _ in range(test.batch):
        prompt = draw.choices(vocabulary, k=test.prompt or 1)
        # Made here, as the last token needs no room: nothing is computed from it.
        request = Request(tuple(prompt), len(prompt) + (test.generate or 1), params)
        sequences.append(Sequence(request, Text(llm.tokenizer)))
    started = llm.engine.clock()
    llm.loop.complete(sequences)
    return llm.engine.clock() - started


def _kernel_seconds(llm: LLM) -> dict[str, float]:
    """Seconds spent so far, by part but the rest."""
    if not native.enabled():
        return {}
    spent = native.seconds()
    return {
        "experts": spent["experts"],
        "dense": spent["dense"] + spent["norm"] + spent["router"],
        "attention": spent["attention"] + llm.engine.attention_seconds,
    }


def dense_token_bytes(llm: LLM) -> int:
    """Bytes of dense weights a decoding step reads: all but embeddings, of which it reads a row."""
    model = llm.model
    packed = [m.packed for m in model.modules() if isinstance(m, PackedLinear)]
    embeddings = model.get_input_embeddings().weight
    tied = any(m.weight is embeddings for m in model.modules() if isinstance(m, torch.nn.Linear))
    weights = [p for p in model.parameters() if p is not embeddings or tied]
    return sum(tensor.nbytes for tensor in (*packed, *weights))


class Bandwidth:
    """What the kernels' threads read from memory, bytes a second: the model's own experts, or as much where it has too few."""

    def __init__(self, llm: LLM) -> None:
        storages = (record.untyped_storage() for layer in llm.loaded.pool.records for record in layer)
        # Records are views of few arenas; those on disk have none.
        largest = max(storages, key=lambda storage: storage.nbytes(), default=None)
        self._memory = (
            torch.empty(0, dtype=torch.uint8).set_(largest)
            if largest is not None and largest.nbytes() >= 2 * READ_BYTES
            else torch.ones(2 * READ_BYTES, dtype=torch.uint8)
        )
        self._begin = 0

    def __call__(self) -> float:
        return max(self._read() for _ in range(READS))

    def _read(self) -> float:
        memory = self._memory[self._begin : self._begin + READ_BYTES]
        self._begin = (self._begin + READ_BYTES) % (len(self._memory) - READ_BYTES + 1)
        return memory.nbytes / native.read_seconds(memory)
