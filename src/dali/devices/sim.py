"""A simulated accelerator: the same results, computed here, by a virtual clock and an adversarial schedule.

Nothing runs when it is issued: operations wait in their streams until the host waits or a seeded coin says
so, and then any head of a queue whose dependencies allow it may run. Memory is within a real budget and
holds 0xFF bytes (NaN in f32, bf16 and f16) from allocation until written, while a copy to it is under way,
and after it was freed; so an access that nobody declared shows in the results, and one that nothing orders
is reported as a race.

The clock (`device.clock`) says what the same operations would have taken: modelled time, never measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from itertools import takewhile
from random import Random

import torch

from dali.devices.base import Buffer, Device, MisuseError, host_memory
from dali.devices.clock import Span, VirtualClock
from dali.devices.dependencies import Dependencies, Operation, Stream
from dali.devices.races import RaceDetector
from dali.errors import DaliError


@torch.inference_mode()
def poison(tensor: torch.Tensor) -> None:
    """Fill with bytes that are NaN in every float format experts come in."""
    tensor.view(-1).view(torch.uint8).fill_(0xFF)


class SimDevice(Device):
    """`budget` in bytes; `seed` of the schedule, which results never depend on.

    For tests: `capacity`, the memory there really is, where less than the budget; `failing_copy`, the number
    of a copy that fails half-way (from 0, as they run); `dependencies`, `races`, to replace its own.
    """

    def __init__(
        self,
        budget: int,
        *,
        name: str = "sim",
        seed: int = 0,
        capacity: int | None = None,
        failing_copy: int | None = None,
        dependencies: Dependencies | None = None,
        races: RaceDetector | None = None,
    ) -> None:
        super().__init__(name, budget, dependencies)
        self.clock = VirtualClock()
        self._random = Random(seed)
        self._eagerness = self._random.choice((0.0, 0.3, 0.9))
        self._capacity = budget if capacity is None else capacity
        self._failing_copy = failing_copy
        self._copies = 0
        self._races = races or RaceDetector()
        self._queues: dict[Stream, deque[Operation]] = {}
        self._told = 0.0  # the end of the last span that `spans` gave

    def now(self) -> float:
        return self.clock.now

    def charge(self, stream: Stream, modelled_seconds: float, label: str) -> None:
        self.launch(stream, lambda: None, (), (), modelled_seconds, label=label)

    def busy_seconds(self) -> dict[str, float]:
        busy, self.clock.busy = self.clock.busy, {}
        return busy

    def watch(self) -> None:
        self._told = self.clock.now

    def spans(self, wait: bool = False) -> list[Span]:
        ended = list(takewhile(lambda span: span.end > self._told, reversed(self.clock.timeline)))
        if ended:
            self._told = ended[0].end
        return ended[::-1]

    def free(self, buffer: Buffer) -> None:
        memory = buffer.tensor
        try:
            super().free(buffer)
        finally:
            if not buffer.usable:
                poison(memory)

    def _memory(self, nbytes: int) -> torch.Tensor:
        if self.used + nbytes > self._capacity:
            raise MemoryError(f"{self.used} of {self._capacity} bytes are in use")
        memory = host_memory(nbytes)
        poison(memory)
        return memory

    def _enqueue(self, operation: Operation, reads: Sequence[Buffer], writes: Sequence[Buffer]) -> None:
        try:
            self._races.launched(operation, {one.key for one in reads}, {one.key for one in writes})
            if self._failure is None:
                self.clock.issue(operation)
        except DaliError as error:
            self._fail(operation, error)
        self._queues.setdefault(operation.stream, deque()).append(operation)
        while self._random.random() < self._eagerness and self._step():
            pass

    def _step(self) -> bool:
        """Run one operation of those that may run; False if none may."""
        queues = [queue for queue in self._queues.values() if queue]
        ready = [queue for queue in queues if all(one.ran is not None for one in queue[0].waits)]
        if not ready:
            return False
        queue = self._random.choice(ready)
        operation = queue[0]
        if operation.sides and self._failure is None:
            for target, _ in operation.sides:  # a copy begins; it ends at some later step
                poison(target)
            operation.sides = ()
            return True
        operation.waits = ()  # they have ended: nothing to order
        self._execute(operation)
        queue.popleft()
        return True

    def _transfer(self, stream: Stream, target: torch.Tensor, source: torch.Tensor) -> None:
        number, self._copies = self._copies, self._copies + 1
        if number == self._failing_copy:
            target[: len(target) // 2] = source[: len(target) // 2]
            raise DaliError(
                f"Copy {number} of {self.name} failed half-way through {source.nbytes} bytes (injected).",
                "Run again without the injected failure.",
            )
        super()._transfer(stream, target, source)

    def _finish(self, operation: Operation) -> None:
        while operation.ran is None:
            if not self._step():
                self._give_up(operation)
        self.clock.wait(operation)

    def _poll(self, operation: Operation) -> bool:
        return self.clock.ended(operation)

    def _await(self, operation: Operation | None) -> None:
        super()._await(operation)
        if operation is not None:
            self._races.host_waited(operation)

    def _settle(self, keys: Collection[int]) -> None:
        super()._settle(keys)
        self._races.forget(set(keys))

    def _fail(self, operation: Operation, error: BaseException) -> None:
        super()._fail(operation, error)
        self.clock.cancel()

    def _give_up(self, awaited: Operation) -> None:
        """Cancel everything: the awaited operation can never run."""
        heads = [queue[0] for queue in self._queues.values() if queue]
        story = "; ".join(f"{head} waits for {', '.join(map(repr, head.waits))}" for head in heads)
        error = MisuseError(f"Deadlock on {self.name}: {story}.")
        for operation in (awaited, *(one for queue in self._queues.values() for one in queue)):
            self._fail(operation, error)
        self._queues.clear()
