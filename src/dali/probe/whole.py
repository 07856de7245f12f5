"""A machine's profile: everything measured, in turn. Nothing is kept of a measurement that is interrupted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from threading import Event, Thread

import torch

import dali
from dali.errors import DaliError
from dali.hardware import profile as profiles
from dali.hardware.gpu import check_gpu
from dali.hardware.host import curve_of
from dali.hardware.machine import Machine, this_machine
from dali.hardware.profile import UNITS, Curve, Figure, Profile, Table
from dali.kernels import native
from dali.probe import dense, disk, experts, link, memory, step
from dali.probe.reading import AGAIN, Clock, Reading
from dali.probe.watch import Watch
from dali.store.arena import Arena
from dali.store.cache import cache_root
from dali.store.direct_io import DirectFile
from dali.units import size

PARTS = {"memory": 2, "experts": 22, "linears": 6, "disk": 9, "steps": 6, "GPU": 10}
"""What is measured, and about how many seconds each takes."""
BESIDE = (1, 8, 64)  # tokens of experts that are measured beside reads
BUFFERS = 16  # records that are read into meanwhile, in turn
GPU = "cuda"
WIDE = 0.2  # spread that is said
LEFT_OUT = 6  # figures that may be missing

Tell = Callable[[str, int], None]
"""Told of each part that is through, and its share of the seconds."""


@dataclass
class Draft:
    """A profile that grows."""

    source: str
    figures: dict[str, Figure] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: float = 0.0
    _left_out: int = 0

    def figure(self, name: str, found: Reading, how: str) -> None:
        self.figures[name] = Figure(
            float(found.value),
            UNITS[name],
            "measured",
            f"{self.source}: {how}.",
            spread=found.spread,
            readings=found.count,
        )

    @property
    def call(self) -> float:
        """Seconds that the tables of experts are without; 0 where they were not measured."""
        return self.figures["experts_call"].value if "experts_call" in self.figures else 0.0

    @contextmanager
    def optional(self) -> Iterator[None]:
        """What fails in here is left out, and said. DaliError: too much was."""
        try:
            yield
        except DaliError as error:
            self.notes.append(f"{error.problem} It was left out.")
            self._left_out += 1
            if self._left_out > LEFT_OUT:
                raise DaliError(
                    f"{self._left_out} figures have readings ten times apart: something else uses this machine.",
                    AGAIN,
                ) from error

    def curve(self, name: str, x: str, unit: str, found: dict[int, float], how: str) -> None:
        points = tuple((float(at), value) for at, value in found.items())
        self.curves.append(Curve(name, x, unit, points, f"{self.source}: {how}."))


def measure(tell: Tell, clock: Clock = time.perf_counter, machine: Machine | None = None) -> Profile:
    """This machine's profile. DaliError: there are no compiled kernels, no memory to measure with, or readings that are none."""
    if not native.enabled():
        raise DaliError(
            "A machine is measured with dali's compiled kernels, which are missing or turned off.",
            "Install a C++ compiler and reinstall dali, or unset DALI_KERNELS.",
        )
    machine = machine or this_machine(cache_root())
    count = torch.get_num_threads()
    pool = Arena(1, memory.pool_bytes())
    pool.all.fill_(1)  # memory that nobody has touched is not there
    with memory.threads(count):
        watch = Watch({"processor": pace(clock), "memory": partial(memory.pace, pool)})
        draft = Draft(f"dali bench hw, {count} threads")
        for part, measured in _parts(draft, pool, count, clock):
            measured()
            tell(part, PARTS[part])
        draft.notes += watch.notes()
    return _profile(draft, machine)


def pace(clock: Clock) -> Callable[[], float]:
    """Seconds of some arithmetic by one thread from its caches; the fastest of a few, so that the clock rate alone shows."""
    layout = experts.layout_of("w8", 256, 256)
    some = experts.Experts(Arena(4, layout.record_bytes), layout, clock)

    def seconds() -> float:
        with memory.threads(1):
            return max(min(some.seconds(4, 64) for _ in range(40)), 1e-9)

    return seconds


def _parts(draft: Draft, pool: Arena, count: int, clock: Clock) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "memory", lambda: _memory(draft, pool, count, clock)
    yield "experts", lambda: _experts(draft, pool, clock)
    yield "linears", lambda: _dense(draft, pool, clock)
    yield "disk", lambda: _disk(draft, pool, clock)
    yield "steps", lambda: _step(draft)
    yield "GPU", lambda: _gpu(draft, clock)


def _memory(draft: Draft, pool: Arena, count: int, clock: Clock) -> None:
    huge, small = memory.measure(pool, count, clock)
    best = max(huge.values(), key=lambda reading: reading.value)
    draft.figure(
        "memory_bandwidth", best, f"{size(pool.nbytes)} in huge pages read by as many threads as are fastest"
    )
    for name, found in (("memory, huge pages", huge), ("memory, small pages", small)):
        values = {threads: reading.value for threads, reading in found.items()}
        draft.curve(name, "threads", "B/s", values, f"{size(pool.nbytes)} read")


def _experts(draft: Draft, pool: Arena, clock: Clock) -> None:
    how = f"{draft.source}: calls of 8 experts each of up to 8 tokens, and of fewer with more, from memory that no cache holds."
    errors: list[float] = []
    with draft.optional():
        draft.figure("experts_call", experts.call_seconds(pool, clock), "one expert a call and 8 in turn")
    call = draft.call
    for format in experts.FORMATS:
        for measured in experts.tables(format, pool, clock, how, call):
            with draft.optional() if draft.tables else nullcontext():  # all else needs the first
                draft.tables.append(measured())
        if format in experts.CHECKED_FORMATS:
            with draft.optional():
                errors += experts.check(format, draft.tables, pool, clock, call)
    draft.error = statistics.median(errors) if errors else 0.0
    first = draft.tables[0]
    named = f"{first.format} experts of {first.hidden} x {first.intermediate}"
    once, most = first.points[0][1], first.points[-1]
    bandwidth, most_read = first.bytes / once, draft.figures["memory_bandwidth"].value
    if bandwidth > most_read:
        draft.notes.append(
            f"Experts on the CPU were read at {bandwidth / 1e9:.1f} GB/s, faster than memory alone, {most_read / 1e9:.1f} GB/s, "
            "which stands for both. The machine was not quiet."
        )
    draft.figure(
        "cpu_bandwidth", Reading(min(bandwidth, most_read), first.spread, 1), f"8 {named}, a token each"
    )
    rate = 2 * first.parameters * most[0] / most[1]
    draft.figure("cpu_rate", Reading(rate, first.spread, 1), f"{named}, {most[0]} tokens each")


def _dense(draft: Draft, pool: Arena, clock: Clock) -> None:
    how = f"{draft.source}: one linear a call, from memory that no cache holds."
    for measured in dense.tables(pool, clock, how):
        with draft.optional():
            draft.tables.append(measured())
    context = (
        f"a context of {dense.CONTEXT}, {dense.HEADS} heads, {dense.KV_HEADS} of keys and values, bfloat16"
    )
    with draft.optional():
        draft.figure("cpu_call", dense.call_seconds(clock), "a linear of 16 rows and 32 columns")
    with draft.optional():
        bandwidth, score, note = dense.decoding_attention(pool, clock)
        draft.notes += [note] if note else []
        shapes = f"a token over {context}, and with 8 heads of each"
        draft.figure("attention_bandwidth", bandwidth, shapes)
        draft.figure("attention_score", score, shapes)
    for dtype in dense.PASSED_AS:
        with draft.optional():
            found, name = dense.pass_bandwidths(pool, dtype, clock), str(dtype).removeprefix("torch.")
            values = {nbytes: each.value for nbytes, each in found.items()}
            norms = f"norms of a tensor in {name}, a read and a write each"
            draft.curve(curve_of(name), "bytes of a tensor", "B/s", values, norms)
    with draft.optional():
        rate, query, note = dense.prompt_attention(clock)
        draft.notes += [note] if note else []
        shapes = f"{dense.PROMPT} tokens at the end of {context}, and alone"
        draft.figure("attention_rate", rate, shapes)
        draft.figure("attention_query", query, shapes)


def _disk(draft: Draft, pool: Arena, clock: Clock) -> None:
    try:
        with disk.trial_file(cache_root()) as path:
            found = disk.measure(path, clock, pool)
            if not found.direct:
                draft.notes.append(
                    f"The file system of {cache_root()} cannot read past the page cache, which was emptied before each reading: "
                    "what reads find there makes the disk look faster."
                )
            draft.notes += found.left_out
            with reading(path, clock):
                layout = experts.layout_of("w4", *experts.SHAPES[0])
                some = experts.Experts(pool, layout, clock)
                points = experts.without_call({tokens: some.read(tokens) for tokens in BESIDE}, draft.call)
    except (disk.NotMeasured, DaliError) as why:
        draft.notes.append(f"The disk was not measured. {str(why).splitlines()[0]}")
        return
    reads = f"records of {size(disk.RECORD)} at random places of {size(disk.FILE)}"
    draft.figure("disk_bandwidth", found.bandwidths[found.depth], f"{reads}, {found.depth} under way at once")
    draft.figure("check_bandwidth", found.check, "checksums of records that were just read, by one thread")
    draft.figure("disk_latency", found.latency, "pages of 4 KiB, one after another")
    how = "the least with which it is about as fast as with more"
    draft.figure("disk_queue_depth", Reading(found.depth, 0.0, 1), how)
    speeds = {depth: speed.value for depth, speed in found.bandwidths.items()}
    draft.curve("disk", "reads under way", "B/s", speeds, reads)
    if found.plain:
        depth, plainly = disk.least(found.plain), f"{reads} through the page cache, which is emptied of each"
        draft.figure("plain_bandwidth", found.plain[depth], f"{plainly}, {depth} under way at once")
        draft.figure("plain_queue_depth", Reading(depth, 0.0, 1), how)
        speeds = {each: speed.value for each, speed in found.plain.items()}
        draft.curve("disk, through the page cache", "reads under way", "B/s", speeds, plainly)
    waits = {depth: found.seconds(depth) for depth in found.bandwidths}
    draft.curve("a read of the disk", "reads under way", "s", waits, reads)
    draft.tables.append(
        experts.table(layout, points, f"{draft.source}: while one thread reads the disk.", beside="reads")
    )


@contextmanager
def reading(path: Path, clock: Clock) -> Iterator[None]:
    """One thread reads the file at random places meanwhile."""
    file = DirectFile(path)
    into = Arena(BUFFERS, disk.RECORD).all.flatten()
    reads, over = disk.Reads(file, path, clock, into), Event()

    def run() -> None:
        while not over.is_set():
            reads.one()

    thread = Thread(target=run, name="dali-probe")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        file.close()


def _step(draft: Draft) -> None:
    with draft.optional():
        _overheads(draft)


def _overheads(draft: Draft) -> None:
    found = step.overheads(step.shipped_model)
    how = f"the shipped model decoding {step.TOKENS} tokens, whose weights are next to nothing"
    draft.figure("layer_overhead", found.layer, f"a layer of {how}")
    draft.figure("step_overhead", found.step, f"what is outside of kernels of {how}")
    draft.figure(
        "sequence_overhead",
        found.sequence,
        f"what {step.BATCH} sequences have outside of kernels more than one, each, of {how}",
    )
    draft.figure(
        "prompt_layer", found.prompt_layer, f"a layer of the shipped model's step of {step.PROMPT} tokens"
    )


def _gpu(draft: Draft, clock: Clock) -> None:
    try:
        check_gpu(GPU)
    except DaliError:
        return  # there is none
    from dali.devices.cuda import Gpu
    from dali.offload.gpu import module_maker

    try:
        gpu = Gpu(GPU)
        found = link.measure(gpu, module_maker(gpu), clock, f"{draft.source}, {gpu.name}")
    except DaliError as error:
        draft.notes.append(f"The GPU was not measured. {error.problem}")
        return
    for name, value in found.figures.items():
        draft.figure(name, value, HOW[name].format(gpu.name))
    draft.tables += found.tables


HOW = {
    "gpu_memory": "as the driver of {} says",
    "gpu_bandwidth": "launches of 8 w4 experts, a token each, on {}",
    "gpu_rate": "launches of 8 w4 experts, 64 tokens each, on {}",
    "link_bandwidth": "copies of w4 experts from page-locked memory to {}",
    "link_latency": "copies of experts of a few KiB to {}, one behind the other",
    "link_contended": "copies of w4 experts to {} while the CPU computes others",
    "launch": "experts of a few KiB on {}, two kernels each",
    "sync": "until the host knows a layer's routing from {}",
}


def _profile(draft: Draft, machine: Machine) -> Profile:
    """Checked as one that is read. DaliError: it would not be taken back."""
    wide = [
        f"{name} by {100 * each.spread:.0f} %" for name, each in draft.figures.items() if each.spread > WIDE
    ]
    if wide:
        draft.notes.append(f"Readings of one figure differ: {', '.join(wide)}. The machine was not quiet.")
    gpu = f", {machine.gpu}" if machine.gpu else ""
    about = (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, disk {machine.disk}{gpu}"
    )
    profile = Profile(
        profiles.OWN,
        about,
        draft.figures,
        tuple(draft.tables),
        tuple(draft.curves),
        machine,
        date.today().isoformat(),
        dali.__version__,
        tuple(draft.notes),
        draft.error,
    )
    try:
        return Profile.from_json(profile.to_json(), "just measured")
    except DaliError as error:
        raise DaliError(f"What was measured contradicts itself. {error.problem}", AGAIN) from error
