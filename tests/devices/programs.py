"""Random programs of launches, copies and host waits, and what they compute when run in order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from dali.devices import Device

STREAMS = ("compute", "copy", "host", "disk")
BUFFERS = 5  # the first ones adopted host tensors, the others slots of the device
ADOPTED = 2
PRIME = 2**31 - 1


@dataclass(frozen=True)
class Launch:
    stream: str
    reads: frozenset[int]
    writes: frozenset[int]
    seconds: float


@dataclass(frozen=True)
class Copy:
    stream: str
    dst: int
    src: int
    seconds: float
    contended: float


@dataclass(frozen=True)
class HostWait:
    stream: str  # for its newest operation


@dataclass(frozen=True)
class Release:
    buffer: int


Program = list[Launch | Copy | HostWait | Release]

_stream = st.sampled_from(STREAMS)
_index = st.integers(0, BUFFERS - 1)
_set = st.frozensets(_index, max_size=3)
_seconds = st.sampled_from((0.0, 1.0, 2.0, 4.0))
_launch = st.builds(Launch, _stream, _set, _set, _seconds)
_copy = st.builds(Copy, _stream, _index, _index, _seconds, _seconds).filter(lambda copy: copy.dst != copy.src)
_rare = st.builds(HostWait, _stream) | st.builds(Release, _index)
programs = st.lists(_launch | _copy | _launch | _copy | _rare, min_size=8, max_size=20)


def _update(old: int, read: int, step: int) -> int:
    return (31 * old + 17 * read + step) % PRIME


def in_order(program: Program, empty: int) -> list[int]:
    """The buffers' values after the program, one operation after another; slots start as `empty`."""
    values = [*range(ADOPTED), *[empty] * (BUFFERS - ADOPTED)]
    for step, action in enumerate(program):
        if isinstance(action, Launch):
            read = sum(values[index] for index in action.reads)
            new = {index: _update(values[index], read, step) for index in action.writes}
            for index, value in new.items():
                values[index] = value
        elif isinstance(action, Copy):
            values[action.dst] = values[action.src]
    return values


def run(device: Device, program: Program, place: str = "cpu") -> list[int]:
    """The same on a device, with the adopted tensors on `place`."""
    tensors = [torch.tensor([index], device=place) for index in range(ADOPTED)]
    slots = device.alloc(8 * (BUFFERS - ADOPTED)).split(8)
    buffers = [*map(device.adopt, tensors), *slots]
    if place != "cpu":
        clear = [slot.tensor.zero_ for slot in slots]
        device.launch(device.stream("compute"), lambda: [zero() for zero in clear], [], slots)

    def value(index: int) -> torch.Tensor:
        return buffers[index].bytes.view(torch.int64)

    def kernel(reads: frozenset[int], writes: frozenset[int], step: int) -> None:
        read = sum((value(index).clone() for index in reads), torch.zeros(1, dtype=torch.int64, device=place))
        for index in writes:
            value(index).mul_(31).add_(17 * read).add_(step).remainder_(PRIME)

    for step, action in enumerate(program):
        match action:
            case Launch(stream, reads, writes, seconds):
                if place != "cpu" and stream == "host":
                    stream = "side"
                device.launch(
                    device.stream(stream),
                    lambda reads=reads, writes=writes, step=step: kernel(reads, writes, step),
                    [buffers[index] for index in reads],
                    [buffers[index] for index in writes],
                    seconds,
                    label=f"launch {step}",
                )
            case Copy(stream, dst, src, seconds, contended):
                queue, label = device.stream(stream), f"copy {step}"
                device.copy(queue, buffers[dst], buffers[src], seconds, contended, label=label)
            case HostWait(stream):
                device.synchronize(device.mark(device.stream(stream)))
            case Release(index):
                device.release(buffers[index])
    device.synchronize()
    return [int(value(index)) for index in range(BUFFERS)]
