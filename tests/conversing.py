"""Random conversations over one engine, with edits, forks, evictions, restarts and Ctrl-C: each turn's logits beside those that a
fresh engine computes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from dali.engine.prefix.folder import Folder
from dali.engine.prefix.names import Names
from dali.engine.prefix.prefixes import Prefixes
from dali.engine.prefix.tree import Tree
from dali.engine.request import Request
from dali.engine.sampling import SamplingParams
from dali.engine.sequence import Sequence
from dali.llm import LLM
from dali.step import state
from dali.step.kv import LayerKV
from dali.step.state import SequenceState
from logits import Forced

GREEDY = SamplingParams(temperature=0, ignore_eos=True)
END = 2  # the token that ends a message


@dataclass
class Counts:
    """What happened."""

    conversations: int = 0
    turns: int = 0
    forks: int = 0
    edits: int = 0
    restarts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    evicted: int = 0
    interrupts: int = 0
    different: int = 0
    taken: dict[str, int] = field(default_factory=lambda: {"ram": 0, "disk": 0})


class Greedy(Forced):
    """Takes the likeliest token, and keeps the logits it is shown."""

    def __init__(self) -> None:
        super().__init__([])

    def sample(
        self, logits: torch.Tensor, tokens: object = (), highest: object = None, allowed: object = None
    ) -> int:
        self.logits.append(logits.clone())
        return int(logits.argmax())


class Conversations:
    """Of a model whose context has `most` tokens and whose vocabulary `words`; `reopen` is the engine anew over a folder, with a
    budget in RAM."""

    def __init__(self, llm: LLM, folder: Path, seed: int, most: int, words: int) -> None:
        self.llm, self.folder, self.most, self.words = llm, folder, most, words
        self.random = random.Random(seed)
        self.counts = Counts()
        self.said: list[list[int]] = []  # whole conversations, the later ones to be gone on with
        self.expected: dict[tuple[int, ...], list[torch.Tensor]] = {}
        self.reopen()

    def reopen(self) -> None:
        """A new engine over the same folder: nothing but that is left. Budgets are tiny, ample or none."""
        self.finish()
        engine, full = self.llm.engine, self._bytes_of(self.most)
        ram = self.random.choice([0, full // 5, full, 3 * full, 100 * full])
        disk = self.random.choice([None, full, 100 * full, 100 * full])
        folder = None if disk is None and ram else Folder(str(self.folder), disk or full, print)
        before = engine.prefixes
        engine.forget()
        engine.prefixes = Prefixes(
            ram,
            folder,
            "tiny",
            before.recurrent,
            before.block if before.block < 64 else None,
            self.random.choice([None, 8, 30]),
        )
        self.counts.restarts += 1

    def finish(self) -> None:
        """All is on disk that shall be, and counted."""
        prefixes = self.llm.engine.prefixes
        prefixes.close()
        self.counts.evicted += prefixes.evicted
        prefixes.evicted = 0
        for where, tokens in prefixes.taken.items():
            self.counts.taken[where] += tokens
            prefixes.taken[where] = 0

    def converse(self) -> None:
        """One conversation, new, forked or gone on with: some turns, perhaps several at once, perhaps with a restart between."""
        self.counts.conversations += 1
        if self.random.random() < 0.2:
            self.reopen()
        said = self._beginning()
        for _ in range(self.random.randint(1, 3)):
            prompts = [[*said, *self._message()]]
            if self.random.random() < 0.25:  # another asks at the same time, alike up to somewhere
                prompts.append([*prompts[0][: self.random.randint(1, len(prompts[0]))], *self._message()])
            prompts = [prompt[: self.most - 8] for prompt in prompts]
            said = self._turn(prompts)
            if len(said) > self.most - 16:
                break
        self.said = [*self.said[-20:], said]

    def _beginning(self) -> list[int]:
        chance = self.random.random()
        if not self.said or chance < 0.2:
            return [1, *self._message()]
        said = self.random.choice(self.said)
        if chance < 0.6:  # what was said up to somewhere
            self.counts.forks += 1
            return said[: self.random.randint(1, len(said))]
        if chance < 0.8:  # one word otherwise
            self.counts.edits += 1
            at = self.random.randrange(len(said))
            return [*said[:at], self._word(), *said[at + 1 :]]
        return said

    def _word(self) -> int:
        return self.random.randrange(3, self.words)

    def _message(self) -> list[int]:
        return [*(self._word() for _ in range(self.random.choice([1, 3, 9, 25]))), END]

    def _turn(self, prompts: list[list[int]]) -> list[int]:
        """Ask all at once; the first with its answer, as conversations go on."""
        engine = self.llm.engine
        engine.scheduler.step_tokens = self.random.choice([4, 7, 13, 512])
        answers = [self.random.choice([1, 2, 7]) for _ in prompts]
        pairs = list(zip(prompts, answers, strict=True))
        sequences = [_sequence(prompt, answer) for prompt, answer in pairs]
        for sequence in sequences:
            engine.add(sequence)
        with self._interrupting():
            while self._step():
                pass
        for sequence, (prompt, answer) in zip(sequences, pairs, strict=True):
            self.counts.turns += 1
            self.counts.prompt_tokens += len(prompt)
            self.counts.cached_tokens += sequence.cached_tokens
            fresh = self._fresh(prompt, answer)
            same = len(fresh) == len(sequence.sampler.logits) and all(  # type: ignore[attr-defined]
                map(torch.equal, fresh, sequence.sampler.logits)  # type: ignore[attr-defined]
            )
            self.counts.different += not same
        return list(sequences[0].tokens)

    def _step(self) -> bool:
        try:
            return self.llm.engine.step()
        except KeyboardInterrupt:
            self.counts.interrupts += 1
            return True

    @contextmanager
    def _interrupting(self) -> Iterator[None]:
        """Now and then somebody presses Ctrl-C while something is kept or taken over."""
        owner, name = self.random.choice(
            [
                (state, "gather"),
                (Tree, "use"),
                (Names, "after"),
                (SequenceState, "resume"),
                (LayerKV, "resume"),
            ]
        )
        plain, calls = getattr(owner, name), count()
        at = self.random.randrange(12) if self.random.random() < 0.3 else None

        def interrupted(*arguments: Any, **keywords: Any) -> Any:
            if next(calls) == at:
                raise KeyboardInterrupt
            return plain(*arguments, **keywords)

        with patch.object(owner, name, interrupted):
            yield

    def _fresh(self, prompt: list[int], answer: int) -> list[torch.Tensor]:
        """The logits of an engine that knows nothing else."""
        engine = self.llm.engine
        last, engine.last.sequence = engine.last.sequence, None
        engine.scheduler.step_tokens = 512
        sequence = _sequence(prompt, answer)
        engine.add(sequence, fresh=True)
        while engine.step():
            pass
        engine.last.sequence = last
        assert sequence.cached_tokens == 0
        return sequence.sampler.logits  # type: ignore[attr-defined, no-any-return]

    def _bytes_of(self, tokens: int) -> int:
        """What so many tokens take."""
        sequence = _sequence([1] * tokens, 1)
        self.llm.engine.add(sequence, fresh=True)
        while self.llm.engine.step():
            pass
        nbytes = sequence.state.nbytes
        self.llm.engine.forget()
        return nbytes


def _sequence(prompt: list[int], answer: int) -> Sequence:
    borders = tuple(at for at, token in enumerate(prompt, 1) if token == END)
    sequence = Sequence(Request(tuple(prompt), len(prompt) + answer, GREEDY, frozenset(), borders))
    sequence.sampler = Greedy()  # type: ignore[assignment]
    return sequence
