"""The engine: one forward pass over the flattened row of all live tokens, a step at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

from dali.engine.budget import StateBudget
from dali.engine.draft.drafts import Drafts
from dali.engine.last import Last
from dali.engine.memory import MemoryErrors, ran_out
from dali.engine.prefix.prefixes import Prefixes
from dali.engine.prefix.reading import Reading
from dali.engine.row import Plan, row_of
from dali.engine.scheduler import Scheduler
from dali.engine.sequence import Sequence
from dali.errors import DaliError
from dali.hooks import recurrent, rope
from dali.kernels import native
from dali.policies.signals import Step
from dali.step.context import StepContext
from dali.step.decoder import Decoder
from dali.step.size import Reservation
from dali.step.state import SequenceState
from dali.units import size

OPENING = 32  # tokens at most with which templates open an answer
PATIENCE = 0.02  # seconds of a step that has nothing to compute until something is read from disk


class Engine:
    """Steps a model over the sequences that were added; they join and leave between steps.

    With a budget (`follow`), the states of live sequences and of the last finished one never take more than that, but for what
    a layer that moves has twice (`StateSize.moving`)."""

    def __init__(self, model: Any, step_tokens: int) -> None:
        self.model = model
        self.scheduler = Scheduler(step_tokens, rope.limits(model))
        self.clock: Callable[[], float] = time.perf_counter  # a simulated device puts its own here
        self.begin: Callable[[Step], None] | None = None  # policies that tell requests apart put theirs here
        self.ended: Callable[[], None] | None = None  # whoever goes by what steps took puts theirs here
        self.embeddings = False  # whether they are told the tokens' embeddings
        self.decoder: Decoder | None = None  # takes the model's place in steps that it serves
        self.drafts: Drafts | None = None  # guesses tokens, which steps then check
        self.attention_seconds = 0.0  # measured, in torch's attention; the native kernels count their own
        self._highest: Any = None  # the decoder's, where the latest logits are its own
        self._native = native.enabled()
        self.in_q8 = False  # whether keys and values are kept in 8 bits; said before any sequence is added
        self._budget: StateBudget | None = None  # None: states take what they need
        self.prefixes = Prefixes(0)  # what earlier sequences have left
        self.last = Last()  # finished sequence, whose state serves a prompt that continues it as it is
        rope.bind_to_step(model)
        recurrent.bind_to_step(model)

    def follow(
        self,
        clock: Callable[[], float],
        begin: Callable[[Step], None] | None,
        embeddings: bool,
        step_tokens: int,
        budget: StateBudget | None = None,
    ) -> None:
        """Go by an accelerator: its clock, its policies' wish to know of each step, its size of prefill chunks, its memory for
        states."""
        self.clock, self.begin, self.embeddings = clock, begin, embeddings
        self.scheduler.step_tokens = step_tokens
        self.limit_states(budget)

    @property
    def cache_type(self) -> str:
        """What keys and values are kept in: "q8", or the model's type, such as "bfloat16"."""
        return "q8" if self.in_q8 else str(self.model.dtype).removeprefix("torch.")

    @property
    def budget(self) -> StateBudget | None:
        """What all states may take together; None where nobody counts it."""
        return self._budget

    def limit_states(self, budget: StateBudget | None) -> None:
        """Let states take no more than that, from the next sequence on; none may be live."""
        self.forget()
        self._budget, self.scheduler.budget = budget, None if budget is None else budget.nbytes

    def add(self, sequence: Sequence, fresh: bool = False) -> None:
        """Let a sequence join with the next step, or when there is room for it: first come, first served. A prefix it shares with
        an earlier one is not computed again, unless it shall be `fresh`. DaliError where there never will be room."""
        self._measure(sequence, max(sequence.request.limit - 1, sequence.prompt_tokens))
        sequence.fresh = fresh
        self.scheduler.add(sequence)

    def forget(self) -> None:
        """Give up what memory has of earlier sequences: unless a disk has it, the next prompt is computed in full."""
        self.last.give_up()
        self.prefixes.forget()

    def abort(self, sequence: Sequence) -> None:
        if sequence in self.scheduler.live:
            sequence.abort()
            try:
                self._record(sequence)
            finally:
                self._retire(sequence)
        elif sequence in self.scheduler.waiting:
            sequence.abort()
            self.scheduler.remove(sequence)
            if sequence.reading is not None:
                sequence.reading.stop()

    def close(self) -> None:
        """Abort what is live and let go of the model; an engine that somebody still holds is empty."""
        for sequence in [*self.scheduler.live, *self.scheduler.waiting]:
            self.abort(sequence)
        self.forget()
        self.prefixes.close()
        self.model = self.decoder = self.begin = self.ended = None

    def step(self) -> bool:
        """Advance live sequences; False when there are none, and nothing is read from disk for one. DaliError where memory runs
        out: the step then was not made."""
        with MemoryErrors(self.model, self.forget):
            return self._step()

    def _step(self) -> bool:
        self._admit()
        if self.scheduler.limits:
            self._cross_limits()
        started = self.clock()
        if self.drafts is not None:
            self.drafts.propose(self.scheduler)
        plan = self.scheduler.next()
        if not plan:
            return self.scheduler.awaits_disk(PATIENCE)
        prefill = [sequence.in_prefill for sequence, _ in plan]
        before = [sequence.computed for sequence, _ in plan]
        for sequence, tokens in plan:
            if sequence.recording is not None:
                sequence.recording.prepare(sequence.state, sequence.computed, tokens)
            if sequence.draft:
                sequence.state.prepare_draft(sequence.computed, tokens)
        try:
            logits, row = self._forward(plan), 0
            for sequence, tokens in plan:
                if sequence.pending > tokens:
                    sequence.computed += tokens
                    continue
                drafted = len(sequence.draft)
                self._choose(sequence, logits, row)
                row += 1 + drafted
            for sequence, _ in plan:
                self._record(sequence)
        except BaseException:
            self._roll_back(plan, before)
            raise
        seconds = self.clock() - started
        for (sequence, _), in_prefill in zip(plan, prefill, strict=True):
            if in_prefill:
                sequence.prefill_seconds += seconds
            else:
                sequence.decode_seconds += seconds
            if sequence.finish_reason is not None:
                self._retire(sequence)
        if self.drafts is not None and not any(prefill):
            self.drafts.note_step(len(plan), seconds)
        if self.ended is not None:
            self.ended()
        return True

    def _choose(self, sequence: Sequence, logits: torch.Tensor, row: int) -> None:
        """Choose what follows the last token and, as long as that is what was drafted, what follows it: by a row of the step's
        `logits` each, from `row` on. What else was computed of the draft is taken back."""
        draft, place, accepted = sequence.draft, len(sequence.tokens), 0
        while True:
            at = row + accepted
            sequence.advance(logits[at], self._highest and partial(self._highest, at))
            right = accepted < len(draft) and sequence.tokens[-1] == draft[accepted]
            if sequence.finish_reason is not None or not right:
                break
            accepted += 1
        if draft:
            taken_back = sequence.state.settle_draft(place + accepted)
            assert taken_back, "a draft goes no further than all layers can go back"
            sequence.draft = []
        sequence.computed = place + accepted
        if sequence.error is None and sequence.recording is not None:
            sequence.recording.prove()
        if draft and self.drafts is not None:
            self.drafts.note(sequence, len(draft), accepted)

    def score(self, sequence: Sequence) -> Iterator[torch.Tensor]:
        """Teacher-forced logits of a sequence that has not joined: [tokens, vocabulary] a chunk, all its tokens in order. No
        other may join meanwhile. DaliError where there is no room for it."""
        self._measure(sequence, len(sequence.tokens))
        sequence.state = SequenceState(self.in_q8)
        self._make_room(sequence)
        if not self.scheduler.has_room(sequence):
            raise DaliError(
                f"{len(sequence.tokens)} tokens cannot be scored beside {len(self.scheduler.live)} sequences under way.",
                "Wait until they have ended.",
            )
        self._reserve(sequence)
        while sequence.pending:
            tokens = min(sequence.pending, self.scheduler.step_tokens)
            with MemoryErrors(self.model, self.forget):
                logits = self._forward([(sequence, tokens)], every_row=True)
            yield logits
            sequence.computed += tokens

    def _measure(self, sequence: Sequence, tokens: int) -> None:
        """Tell a sequence what its state may take when it has `tokens` tokens. DaliError where that is more than there is."""
        if self._budget is None:
            return
        sequence.reservation = self.reservation(tokens)
        sequence.state_bytes = self._budget.size.nbytes(sequence.reservation)
        if sequence.state_bytes > self._budget.nbytes:
            raise DaliError(
                f"A sequence of up to {tokens} tokens may need {size(sequence.state_bytes)} for keys and values; all that may be "
                f"live at once have {size(self._budget.nbytes)}.",
                f"Shorten the prompt of {sequence.prompt_tokens} tokens, or allow its answer fewer tokens.",
            )

    def reservation(self, tokens: int) -> Reservation:
        """What a sequence of so many tokens needs room for."""
        drafted = 0 if self.drafts is None else self.drafts.most
        return Reservation(tokens, self.scheduler.step_tokens, drafted)

    def _make_room(self, sequence: Sequence) -> None:
        if not self.scheduler.has_room(sequence, self.last.state_bytes):
            self.last.give_up()

    def _reserve(self, sequence: Sequence) -> None:
        if sequence.reservation is not None:
            sequence.state.reserve(sequence.reservation)

    def _admit(self) -> None:
        """Let those join that there is room for. What is kept of the last finished sequence is given up for them."""
        scheduler = self.scheduler
        while scheduler.waiting and scheduler.has_room(sequence := scheduler.waiting[0]):
            # Whatever an earlier try has left is given up.
            sequence.state, sequence.computed, sequence.cached_tokens = SequenceState(self.in_q8), 0, 0
            sequence.regime = scheduler.regime(sequence)
            # Where a later prompt may part from this one: at its last token if it is asked anew, and in a conversation before the
            # opening of the answer, which templates write otherwise once the answer is there.
            end = sequence.prompt_tokens
            places = [place for place in (end - OPENING, end - 1) if place > 0]
            if sequence.fresh:
                self._make_room(sequence)
                self._reserve(sequence)
            elif self._take_over_prefix(sequence):
                self._record_from_here(sequence, places)
            else:
                return
            sequence.state.keep(place for place in places if place > sequence.computed)
            scheduler.join()

    @torch.inference_mode()
    def _forward(self, plan: Plan, every_row: bool = False) -> torch.Tensor:
        """Run the model on the planned tokens; logits [rows, vocabulary] of each sequence's last token, if it was computed,
        and of those drafted behind it."""
        row = row_of(plan)
        if self.begin is not None:
            self.begin(row.told(self.model, self.embeddings))
        step = StepContext(row.segments, row.longest, self._native)
        self._highest = None
        if self.decoder is not None and self.decoder.serves(step):
            self._highest = self.decoder.highest
            wanted = list(range(len(row.ids))) if every_row else row.last
            return self.decoder.decode(step, row.ids, row.positions, wanted)
        logits = row.through(self.model, step, every_row)
        self.attention_seconds += step.attention_seconds
        return logits

    def _roll_back(self, plan: Plan, before: list[int]) -> None:
        """An interrupted step has left its mark on some layers only, or sequences without their token: take it back, so that the
        step can be tried again."""
        for (sequence, _), tokens in zip(plan, before, strict=True):
            sequence.draft = []
            if sequence.finish_reason is not None:
                self._retire(sequence)
            elif sequence.computed != tokens:  # it has its token: only others' were still to come
                continue
            elif not sequence.state.rollback(tokens):
                self.abort(sequence)

    def _cross_limits(self) -> None:
        """A sequence that grew beyond a limit of its rotary embedding is computed anew, as one of that length."""
        for sequence in self.scheduler.live:
            if (regime := self.scheduler.regime(sequence)) != sequence.regime:
                sequence.restart(regime)
                self._record_from_here(sequence, ())

    def _retire(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.last.give_up()
        if sequence.error is None:
            self.last.sequence = sequence
        else:
            sequence.state.clear()
            if sequence.recording is not None:
                sequence.recording.undo()

    def _record_from_here(self, sequence: Sequence, places: Iterable[int]) -> None:
        """Leave to others what is computed of a sequence from now on: at borders, and at `places` where no border is near."""
        if sequence.fresh:
            return
        borders = sequence.request.borders
        near = range(sequence.prompt_tokens - OPENING, sequence.prompt_tokens)
        if not any(border in near for border in borders):
            borders = (*borders, *places)
        sequence.recording = self.prefixes.record(
            sequence.tokens, sequence.regime, sequence.computed, borders
        )

    def _record(self, sequence: Sequence) -> None:
        """Leave to others what was computed of a sequence, which may have ended, but for a step that it failed in. Where there is
        no memory for that, nothing is left to anybody."""
        recording = sequence.recording
        if recording is None or sequence.error is not None:
            return
        try:
            if sequence.finish_reason is None:
                recording.advance(sequence.state, sequence.computed)
            else:
                sequence.recording = None
                recording.finish(sequence.state, sequence.computed)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error) and sequence.finish_reason != "abort":  # after whatever else went wrong
                raise
            self.prefixes.forget()

    def _take_over_prefix(self, sequence: Sequence) -> bool:
        """Go on from where an earlier sequence with the same beginning was: the last finished one, whose state needs no copy,
        unless another has more. False while that is read from disk, and others are computed."""
        reading = sequence.reading = sequence.reading or Reading(self.prefixes.folder)
        if not reading.wait():
            return False
        place = self.last.shared(sequence)
        found = self.prefixes.find(tuple(sequence.tokens[:-1]), sequence.regime, place, reading)
        if reading.under_way:
            return False
        sequence.reading = None
        if found is None and place:
            self.last.hand_over(sequence, place)
        self._make_room(sequence)
        self._reserve(sequence)
        if found is not None:
            room = min(len(sequence.tokens) + self.scheduler.step_tokens, sequence.request.limit)
            sequence.state.resume(found.place, found.kept, room, self.model.device)
            sequence.computed = sequence.cached_tokens = found.place
        return True
