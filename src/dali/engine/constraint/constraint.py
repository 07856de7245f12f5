"""What holds an answer to a grammar, token by token."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from decimal import Decimal
from threading import Thread

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits
from torch import Tensor

from dali.engine.constraint.vocabulary import Vocabulary
from dali.errors import Unsupported, UsageError

# A grammar may take so much and no more: a fifth of a second to be compiled, and some tens of milliseconds a token.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=500_000,
    step_max_items=200_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)
MOST_LETTERS = 2**20  # of a grammar
MOST_SECONDS = 20
MOST_MULTIPLE = 10_000
MULTIPLE = re.compile(r'\\?"multipleOf\\?"\s*:\s*(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)')
# Of an error: our own grammar, which has the client's in it, and where in that it is.
NOT_SAID = re.compile(
    r"(?m)^\s*\d+ \|.*$|^[\s^~]*$|^at \d+\(\d+\): |failed to compile JSON schema: |<non-verbose/>"
    r"| Enable '\w+' option [^\n]*"
)
NOTHING = "NoExtensionBias"  # what llguidance calls a grammar without a text


class Grammar:
    """A grammar that was compiled, for any number of answers."""

    def __init__(self, source: str, vocabulary: Vocabulary) -> None:
        """source: in llguidance's own forms. UsageError: it is none, says nothing, or is too large. May take a second, and lets
        other threads go on meanwhile."""
        if len(source) > MOST_LETTERS:
            raise UsageError(
                f"The grammar has {len(source)} letters, and may have {MOST_LETTERS}.", "Make it simpler."
            )
        _check_multiples(source)
        self._matcher = _in_time(lambda: _compiled(source, vocabulary))

    def constraint(self) -> Constraint:
        """For one answer."""
        return Constraint(self._matcher.deep_copy())


class Constraint:
    """Follows one answer's tokens. Belongs to the thread that steps the engine."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._begin = matcher
        self._matcher = matcher.deep_copy()
        self._seen: int | None = 0  # tokens that the matcher has taken; None where nobody knows

    def allowed(self, answer: Sequence[int], size: int) -> Tensor:
        """Ids of the tokens that may come after `answer`, ascending, int64, all below `size`; those that end it are among them
        where it may end. UsageError: the grammar asks for too much work."""
        self._follow(answer)
        mask = self._matcher.compute_bitmask()
        _check(self._matcher)
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=min(size, 8 * len(mask)), bitorder="little")
        return torch.from_numpy(bits.view(bool).nonzero()[0])

    def over(self, answer: Sequence[int]) -> bool:
        """Whether `answer` is whole, and nothing can come after it."""
        self._follow(answer)
        return self._matcher.is_stopped()

    def _follow(self, answer: Sequence[int]) -> None:
        """Be where `answer` ends. Whatever a step was interrupted in, it is tried again with the tokens that there are then."""
        seen, self._seen = self._seen, None
        if seen is None or seen > len(answer):
            self._matcher, seen = self._begin.deep_copy(), 0
        if seen < len(answer):
            self._matcher.consume_tokens([*answer[seen:]])
            _check(self._matcher)
        self._seen = len(answer)


def _compiled(source: str, vocabulary: Vocabulary) -> LLMatcher:
    matcher = LLMatcher(vocabulary.library, source, log_level=0, limits=LIMITS)
    _check(matcher)
    first = matcher.compute_bitmask()
    _check(matcher)
    if not any(first):
        raise UsageError("Nothing is of this grammar.", "Let it have an answer.")
    return matcher


def _in_time(compiled: Callable[[], LLMatcher]) -> LLMatcher:
    """What `compiled` returns. UsageError where it takes too long: no limit of llguidance's holds everywhere, and nobody can stop
    it, so it goes on in a thread that nobody waits for."""
    done: Future[LLMatcher] = Future()

    def work() -> None:
        try:
            done.set_result(compiled())
        except BaseException as error:
            done.set_exception(error)

    Thread(target=work, name="dali-grammar", daemon=True).start()
    try:
        return done.result(MOST_SECONDS)
    except TimeoutError as error:
        raise refused(f"it takes more than {MOST_SECONDS} seconds to compile") from error


def _check_multiples(source: str) -> None:
    """Unsupported where numbers have to be multiples of a large one, which takes as long as it is large, or of none above 0."""
    found = {Decimal(number) for number in MULTIPLE.findall(source)}
    if any(number <= 0 for number in found):
        raise refused(f"multipleOf is {min(found)}, and has to be above 0")
    whole = [int("".join(map(str, number.as_tuple().digits))) for number in found]
    if (common := math.lcm(*whole)) > MOST_MULTIPLE:
        raise refused(
            f"multipleOf asks for multiples of {common} steps, and at most {MOST_MULTIPLE} can be told apart"
        )


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise refused(matcher.get_error())


def refused(error: str) -> Unsupported:
    """What a client is told of what llguidance says."""
    said = " ".join(NOT_SAID.sub("", error).replace(NOTHING, "nothing follows it").split()).rstrip(".")
    return Unsupported(
        f"An answer cannot be held to this grammar or schema: {said[:400]}.",
        "Leave out what is named, or make it simpler.",
    )
