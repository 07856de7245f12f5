"""The one thread that steps the engine for all clients; their asks join and leave between steps."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from threading import Condition, Thread
from typing import TYPE_CHECKING

from dali.errors import DaliError
from dali.serve.generation.ask import Ask
from dali.serve.generation.events import Delta, Finish
from dali.serve.generation.generation import Choice, Generation
from dali.serve.http.errors import ApiError
from dali.serve.watch.traffic import Traffic

if TYPE_CHECKING:
    from dali.llm import LLM
    from dali.measure.explained import Explained

log = logging.getLogger("dali")

# Seconds after which a thread that computes in Python lets another, for the whole process. With Python's own 5 ms the event loop
# can keep the one that steps waiting for as long; what it waits now is in benchmarks/serving/streams.py (beside_ms).
SWITCH = 0.0005


class Service:
    """Answers asks with `llm`: at most `slots` choices at once, first come, first served; `queue` more may wait."""

    def __init__(self, llm: LLM, slots: int, queue: int) -> None:
        self.llm = llm
        self.slots = slots
        self.queue = queue
        self.traffic = Traffic()
        self.explained: Explained | None = None  # where somebody asked for it before the first step
        self.latest = 0  # steps there were when the latest answer began, where they are explained
        self._changed = Condition()
        self._waiting: deque[Choice] = deque()
        self._live: list[Choice] = []
        self._leaving: list[Generation] = []  # cancelled since the last step
        self._gone: list[Choice] = []  # of those, what had not had its turn, and was not told
        self._stopping = False
        self._seconds = 1.0  # that a choice took of late, a moving average
        self._began: dict[Choice, float] = {}
        sys.setswitchinterval(SWITCH)
        self._thread = Thread(target=self._run, name="dali-steps", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        return len(self._live)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def begin(self, ask: Ask) -> Generation:
        """Let an ask join. ApiError: 429 where too many wait, 503 where the server stops. UsageError: what the model refuses."""
        asked = time.monotonic()
        with self._changed:
            self._check_room(ask.choices)  # before the tokenizer works for nothing
        sequences = await asyncio.to_thread(ask.sequences, self.llm)
        generation = Generation(sequences, self.cancel)
        with self._changed:
            self._check_room(len(sequences))
            self._waiting += generation.choices
            self.traffic.ask(generation.choices, asked)
            self._changed.notify()
        return generation

    def cancel(self, generation: Generation) -> None:
        """End what has not ended of it, before the next step. From any thread."""
        with self._changed:
            self._leaving.append(generation)
            self._changed.notify()

    def stop(self, grace: float) -> None:
        """Take no more asks; those under way have `grace` seconds to end, then they end as they are."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
            self._changed.wait_for(lambda: not self._live and not self._waiting, grace)
            self._leaving += [choice.generation for choice in (*self._live, *self._waiting)]
            self._changed.notify()
        self._thread.join()

    def _check_room(self, choices: int) -> None:
        if self._stopping:
            raise ApiError(503, "The server is stopping.", "unavailable_error")
        ahead = len(self._live) + len(self._waiting)
        if ahead + choices > self.slots + self.queue and ahead:
            seconds = self._seconds * (len(self._waiting) + 1) / self.slots
            raise ApiError(
                429,
                f"{len(self._waiting)} answers wait already, and {self.queue} may. Try again later.",
                "rate_limit_error",
                code="queue_full",
                headers={"Retry-After": str(min(max(math.ceil(seconds), 1), 60))},
            )

    def _run(self) -> None:
        while True:
            try:
                if not self._turn():
                    return
            except Exception as error:  # whatever it is, nobody may wait for a thread that is gone
                self._drop_all(_unexpected(error))

    def _turn(self) -> bool:
        """Who leaves, who joins, one step, and what is new; waits until there is something to do. False at the end."""
        with self._changed:
            self._changed.notify_all()  # whoever waits for the end
            self._changed.wait_for(lambda: self._live or self._waiting or self._leaving or self._stopping)
            if self._stopping and not self._live and not self._waiting:
                return False
            leaving, self._leaving = self._leaving, []
            self._gone = [choice for choice in self._waiting if choice.generation in leaving]
            for choice in self._gone:
                self._waiting.remove(choice)
                choice.sequence.abort()
            free = self.slots - len(self._live)
            joining = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            self._live += joining
        self._join(joining)
        if leaving:
            self.llm.loop.abort([choice.sequence for choice in self._live if choice.generation in leaving])
        if any(choice.sequence.finish_reason is None for choice in self._live):
            self._step()
        self._tell()
        return True

    def _join(self, choices: Iterable[Choice]) -> None:
        for choice in choices:
            self._began[choice] = time.monotonic()
            if self.explained is not None:
                self.latest = self.explained.begun
            try:
                with self.llm.loop.between_steps() as engine:
                    engine.add(choice.sequence)
            except DaliError as error:
                choice.sequence.fail(error)

    def _step(self) -> None:
        """One step for all. Where it fails, the choice that joined last ends with the error, and the others have another try."""
        try:
            self.llm.loop.step()
        except Exception as error:
            last = next(choice for choice in reversed(self._live) if choice.sequence.finish_reason is None)
            with self.llm.loop.between_steps() as engine:
                last.sequence.fail(error if isinstance(error, DaliError) else _unexpected(error))
                engine.abort(last.sequence)

    def _tell(self) -> None:
        """Hand each event loop what is new for it, all at once."""
        modelled = self.llm.telemetry.modelled
        mail: dict[asyncio.AbstractEventLoop, list[tuple[Generation, Delta]]] = {}
        for choice in (*self._gone, *self._live):
            delta = choice.take(modelled)
            self.traffic.note(choice, delta)
            if delta is not None:
                mail.setdefault(choice.generation.loop, []).append((choice.generation, delta))
        self._gone = []
        self._retire()
        for loop, deltas in mail.items():
            try:
                loop.call_soon_threadsafe(_deliver, deltas)
            except RuntimeError:  # the event loop is closed: nobody reads these any longer
                with self._changed:
                    self._leaving += [generation for generation, _ in deltas]

    def _drop_all(self, error: DaliError) -> None:
        """End all there is with `error`."""
        with self._changed:
            choices = [*self._gone, *self._live, *self._waiting]
            self._gone = []
            self._live.clear()
            self._waiting.clear()
            self._began.clear()
        for choice in choices:
            choice.sequence.fail(error)
            with suppress(Exception), self.llm.loop.between_steps() as engine:
                engine.abort(choice.sequence)
            self.traffic.drop(choice)
            finish = Delta(choice.index, finish=Finish("error", error=error))
            with suppress(RuntimeError):
                choice.generation.loop.call_soon_threadsafe(choice.generation.deliver, finish)

    def _retire(self) -> None:
        ended = [choice for choice in self._live if choice.sequence.finish_reason is not None]
        now = time.monotonic()
        with self._changed:
            for choice in ended:
                self._live.remove(choice)
                self._seconds += 0.2 * (now - self._began.pop(choice) - self._seconds)


def _deliver(deltas: list[tuple[Generation, Delta]]) -> None:
    for generation, delta in deltas:
        generation.deliver(delta)


def _unexpected(error: Exception) -> DaliError:
    """What clients are told of it; the log says more, and nothing of prompts, which the error's own words may have."""
    log.error("A step failed with an unexpected %s.", type(error).__name__)
    log.debug("", exc_info=error)
    return DaliError(
        f"The step failed with an unexpected {type(error).__name__}.",
        "That should not happen: run the server with -v, and report what it says.",
    )
