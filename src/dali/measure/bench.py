"""How fast a loaded model is: prompts and generation apart, as llama-bench measures them, beside what memory allows.

Not covered: several sequences at once, accelerators.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
from dali.engine.sequence import Sequence
from dali.engine.text.text import Text
from dali.errors import UsageError, parameter
from dali.fused.dense import PackedLinear
from dali.kernels import native
from dali.llm import LLM

READ_BYTES = 2**28  # of a read that measures bandwidth: far beyond any cache, some 10 ms
READS = 4  # of which the fastest counts: a ceiling must not be lowered by whatever else ran for a moment
PARTS = ("experts", "dense", "attention", "rest")


@dataclass(frozen=True)
class Test:
    """`prompt` tokens computed at once, or `generate` tokens one after another; the other is 0."""

    prompt: int
    generate: int

    @property
    def name(self) -> str:
        return f"pp{self.prompt}" if self.prompt else f"tg{self.generate}"


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
        return [(self.test.prompt or self.test.generate) / seconds for seconds in self.seconds]

    @property
    def roofline(self) -> float | None:
        """The speed over the one at which memory is read without a pause: the median over repetitions."""
        if self.token_bytes is None or not self.bandwidths:
            return None
        pairs = zip(self.speeds, self.bandwidths, strict=True)
        return statistics.median(speed * self.token_bytes / bandwidth for speed, bandwidth in pairs)


def measure(llm: LLM, tests: list[Test], repetitions: int) -> Iterator[Measurement]:
    """Run each test once to warm up and `repetitions` times measured. UsageError for one the context has no room for."""
    for test in tests:
        if max(test.prompt, test.generate) > llm.ctx_size:
            raise UsageError(
                f"{test.name} does not fit a context of {llm.ctx_size} tokens.",
                f"Give at most {llm.ctx_size}, or a larger {parameter('ctx_size')} if the model allows.",
            )
    bandwidth = Bandwidth(llm) if native.enabled() else None
    draw = random.Random(0)
    for test in tests:
        _run(llm, Test(test.prompt, min(test.generate, 4)), draw)
        measurement = Measurement(test)
        spent = dict.fromkeys(PARTS, 0.0)
        read = 0
        for _ in range(repetitions):
            before = bandwidth() if bandwidth else 0.0
            kernels, bytes_before = _kernel_seconds(llm), llm.telemetry.expert_bytes
            seconds = _run(llm, test, draw)
            for part, value in _kernel_seconds(llm).items():
                spent[part] += value - kernels[part]
            read += llm.telemetry.expert_bytes - bytes_before
            measurement.seconds.append(seconds)
            if bandwidth:
                measurement.bandwidths.append(max(before, bandwidth()))
        if bandwidth:
            total = sum(measurement.seconds)
            spent["rest"] = total - sum(spent.values())
            measurement.shares = {part: seconds / total for part, seconds in spent.items()}
        if test.generate:
            measurement.token_bytes = read / (repetitions * test.generate) + dense_token_bytes(llm)
        yield measurement


def _run(llm: LLM, test: Test, draw: random.Random) -> float:
    """Seconds of one repetition on random tokens, nothing kept from earlier ones."""
    llm.engine.forget()
    prompt = draw.choices(range(llm.model.config.get_text_config().vocab_size), k=test.prompt or 1)
    params = SamplingParams(temperature=0, ignore_eos=True)
    # Made here, as the last token needs no room: nothing is computed from it.
    request = Request(tuple(prompt), len(prompt) + (test.generate or 1), params)
    sequence = Sequence(request, Text(llm.tokenizer))
    started = time.perf_counter()
    llm.loop.complete([sequence])
    return time.perf_counter() - started


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
