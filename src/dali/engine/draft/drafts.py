"""Drafts for an engine's sequences: which of them a step checks, and what became of them."""

from __future__ import annotations

from dali.engine.draft.ngrams import NONE, Draft, NGrams
from dali.engine.draft.pace import Pace
from dali.engine.scheduler import Scheduler
from dali.engine.sequence import Sequence
from dali.step.context import MOST_ROWS
from dali.telemetry import Telemetry


class Drafts:
    """Guesses tokens for each sequence before a step, and learns from the step what guesses are worth. A draft never changes what
    is chosen: tokens are chosen one after another from the model's logits, of which a draft only lets a step compute more."""

    most = MOST_ROWS - 1  # tokens of one sequence

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._pace = Pace()
        self._drafted = self._accepted = 0  # tokens of the step under way

    def propose(self, scheduler: Scheduler) -> None:
        """Set the `draft` of all that decode."""
        self._drafted = self._accepted = 0
        decoding = [sequence for sequence in scheduler.live if not sequence.in_prefill]
        if not self._pace.ready(len(decoding)):
            return
        found = [self._find(sequence, scheduler.limits) for sequence in decoding]
        if not any(draft.matched for draft in found):
            return
        lengths = self._pace.lengths([draft.matched for draft in found])
        left = max(scheduler.step_tokens - len(decoding), 0)
        for sequence, draft, length in zip(decoding, found, lengths, strict=True):
            sequence.matched, sequence.draft = draft.matched, draft.tokens[: min(length, left)]
            left -= len(sequence.draft)

    def note(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """A step has checked a draft of so many tokens, and found so many of them right."""
        sequence.drafted += drafted
        sequence.accepted += accepted
        self._drafted += drafted
        self._accepted += accepted
        self._telemetry.draft_accepted += accepted
        self._telemetry.draft_rejected += drafted - accepted
        self._pace.note_draft(sequence.matched, drafted, accepted)

    def note_step(self, sequences: int, seconds: float) -> None:
        """The step has ended; it was of so many sequences, none of which has read its prompt."""
        self._pace.note_step(sequences, self._drafted, self._accepted, seconds)

    def _find(self, sequence: Sequence, limits: tuple[int, ...]) -> Draft:
        """No further than the last token to be computed, which the answer's last one is not, and within the sequence's regime."""
        if sequence.ngrams is None:
            sequence.ngrams = NGrams(sequence.tokens)
        if not sequence.ngrams.recalls():
            return NONE
        length = len(sequence.tokens)
        end = min([sequence.request.limit - 1, *(limit for limit in limits if limit >= length)])
        draft = sequence.ngrams.propose(min(self.most, end - length, sequence.state.draftable))
        whole = next((at for at, token in enumerate(draft.tokens) if token in sequence.eos), None)
        return draft if whole is None else Draft(draft.matched, draft.tokens[:whole])
