"""The grammars of one model's answers, each compiled once."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dali.engine.constraint.constraint import Constraint, Grammar
    from dali.engine.constraint.vocabulary import Vocabulary

MOST = 16  # that are kept; programs ask for the same few again and again


class Grammars:
    """From any thread. llguidance is imported when the first answer is held to something, which most never are."""

    def __init__(self, tokenizer: Any, eos: frozenset[int]) -> None:
        """eos: tokens that end an answer."""
        self._tokenizer = tokenizer
        self._eos = eos
        self._lock = Lock()
        self._vocabulary: Vocabulary | None = None
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    @property
    def vocabulary(self) -> Vocabulary:
        """Read when it is first asked for: most who load a model never do."""
        from dali.engine.constraint.vocabulary import Vocabulary

        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer, self._eos)
            return self._vocabulary

    def constraint(self, source: str) -> Constraint:
        """For one answer of the grammar `source`. UsageError: it cannot be compiled."""
        from dali.engine.constraint.constraint import Grammar

        vocabulary = self.vocabulary
        with self._lock:
            grammar = self._compiled.pop(source, None)
        if grammar is None:
            grammar = Grammar(source, vocabulary)
        with self._lock:
            self._compiled[source] = grammar
            while len(self._compiled) > MOST:
                self._compiled.popitem(last=False)
        return grammar.constraint()
