"""From one row of logits to one token: what a request may ask for, and the sampler that does it."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from dali.errors import DaliError, UsageError

FAR = 1e24  # of penalties: beyond, all is the same, and float32 has no room for it
PIECE = 2**14  # logits; torch shares out operations on twice as many


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one sequence are chosen, and when it ends.

    The defaults are neutral: they draw from the model's own distribution. `temperature=0` is greedy,
    `top_k=0`, `top_p=1` and `min_p=0` turn their filter off, `seed=None` draws fresh entropy, and with
    `max_tokens=None` the context is the only limit.

    Penalties have llama.cpp's names and meaning, and work on logits before all else, greedy or not. They look at the last
    `repeat_last_n` tokens, prompt included (-1: all, 0: none): a token that is among them n times has its logit divided by
    `repeat_penalty` if it is above 0, else multiplied by it; then n * `frequency_penalty` + `presence_penalty` is taken off.

    `stop`: strings before which the text ends, one or several. `logprobs`: note each token's log probability under the model's
    own distribution, and those of so many likeliest tokens. Raises UsageError on a value that cannot be meant.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()  # a tuple, once checked
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and not _is_int(self.max_tokens, 1):
            raise _refused("max_tokens", self.max_tokens, "Give a whole number from 1, or None for no limit.")
        if not _is_number(self.temperature, sys.float_info.max):
            raise _refused("temperature", self.temperature, "Give 0 for greedy or a number such as 0.7.")
        if not _is_int(self.top_k, 0):
            raise _refused("top_k", self.top_k, "Give a whole number such as 40, or 0 to turn it off.")
        if not _is_number(self.top_p, 1):
            raise _refused("top_p", self.top_p, "Give a number from 0 to 1, where 1 turns it off.")
        if not _is_number(self.min_p, 1):
            raise _refused("min_p", self.min_p, "Give a number from 0 to 1, where 0 turns it off.")
        if not (_is_number(self.repeat_penalty, sys.float_info.max) and self.repeat_penalty > 0):
            raise _refused(
                "repeat_penalty", self.repeat_penalty, "Give a number above 0, where 1 turns it off."
            )
        if not _is_int(self.repeat_last_n, -1):
            raise _refused(
                "repeat_last_n", self.repeat_last_n, "Give a whole number of tokens, -1 for all, 0 for none."
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not _is_number(getattr(self, name), sys.float_info.max, -sys.float_info.max):
                raise _refused(name, getattr(self, name), "Give a number such as 0.5, where 0 turns it off.")
        if self.seed is not None and not (_is_int(self.seed, 0) and self.seed < 2**64):
            raise _refused("seed", self.seed, "Give a whole number from 0 to 2**64 - 1, or None.")
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not (isinstance(stop, Sequence) and all(isinstance(text, str) and text for text in stop)):
            raise _refused(
                "stop", self.stop, 'Give strings that are not empty, such as "###" or ["###", "END"].'
            )
        object.__setattr__(self, "stop", tuple(stop))
        if not isinstance(self.ignore_eos, bool):
            raise _refused("ignore_eos", self.ignore_eos, "Give True or False.")
        if self.logprobs is not None and not _is_int(self.logprobs, 0):
            raise _refused(
                "logprobs", self.logprobs, "Give how many likeliest tokens to note beside, or None."
            )

    @property
    def penalises(self) -> bool:
        """Whether any penalty is on."""
        off = self.repeat_penalty == 1 and not self.presence_penalty and not self.frequency_penalty
        return not off and self.repeat_last_n != 0

    @property
    def candidates(self) -> int:
        """How many of the highest logits can be chosen, ties apart; 0: all."""
        return 1 if self.temperature == 0 else self.top_k


Highest = Callable[[int], tuple[Tensor, Tensor] | None]  # as Decoder.highest has it, of one row


class Sampling(TypedDict, total=False):
    """What the methods of LLM take by name: the fields of SamplingParams, over the model's own defaults or over `params`, which
    takes their place. None is as good as not given."""

    params: SamplingParams | None
    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool | None
    logprobs: int | None


# llama.cpp's defaults, for models whose files do not say how to sample.
FALLBACK: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


def params_of(sampling: Sampling, defaults: Mapping[str, Any]) -> SamplingParams:
    """What is given, over the model's `defaults` or over its `params`. UsageError: no such parameter, or value."""
    given: dict[str, Any] = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in sampling.items()
        if name != "params" and value is not None
    }
    params = sampling.get("params")
    if not isinstance(params, SamplingParams | None):
        raise UsageError(
            f"params cannot be {params!r:.60}.", "Give dali.SamplingParams(...), or its fields by name."
        )
    known = [field.name for field in fields(SamplingParams)]
    if unknown := set(sampling).difference(known, {"params"}):
        raise UsageError(
            f"Unknown sampling parameter {min(unknown)!r}.", f"Known parameters: {', '.join(known)}."
        )
    return SamplingParams(**{**defaults, **given}) if params is None else replace(params, **given)


def penalised(logits: Tensor, tokens: Sequence[int], params: SamplingParams) -> Tensor:
    """`logits` [vocab], float32, after the penalties for `tokens`, which are all of the sequence so far."""
    last = tokens if params.repeat_last_n < 0 else tokens[-params.repeat_last_n :]
    counts = Counter(last)
    ids = torch.tensor(list(counts), dtype=torch.int64)
    times = torch.tensor(list(counts.values()), dtype=torch.float32)
    own = logits[ids]
    repeat = min(max(params.repeat_penalty, 1 / FAR), FAR)
    frequency, presence = (
        min(max(penalty, -FAR), FAR) for penalty in (params.frequency_penalty, params.presence_penalty)
    )
    own = torch.where(own > 0, own / repeat, own * repeat)
    return logits.index_put((ids,), own - (times * frequency + presence))


def distribution(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The n >= 1 tokens that survive the filters: ids int64 [n], weights float32 [n] ~ their probabilities.

    `logits` [vocab] are on the CPU, each finite or -inf and at least one finite; `params.temperature` > 0.
    The filters apply in transformers' order: temperature; top-k (arXiv 1805.04833), which keeps ties with the
    k-th; top-p (nucleus, arXiv 1904.09751), the smallest set whose probability reaches top_p; min-p
    (arXiv 2407.01082), relative to the likeliest token.
    """
    real = torch.finfo(torch.float32)
    scores = logits.float()
    scores = (scores - scores.max()) / min(max(params.temperature, real.tiny), real.max)
    ids = torch.arange(len(scores))
    if 0 < params.top_k < len(scores):
        ids = (scores >= scores.topk(params.top_k).values[-1]).nonzero().squeeze(1)
    weights = scores[ids].softmax(0)
    # min-p only cuts the tail, so it may go first. So may every token below (1 - top_p) / n: all of them
    # together weigh less than what top-p leaves out. Half of that is safe from rounding, and it makes the
    # sort short.
    floor = max(params.min_p * float(weights.max()), (1 - params.top_p) / (2 * len(weights)))
    likely = weights >= floor
    ids, weights = ids[likely], weights[likely]
    if params.top_p < 1:
        weights, order = weights.sort(descending=True, stable=True)
        likelier = weights.cumsum(0) - weights
        size = max(1, int((likelier < params.top_p).sum()))
        ids, weights = ids[order[:size]], weights[:size]
    return ids, weights


def likeliest(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The logits that can be chosen by temperature 0 or top-k, ties with the last among them, and whose they are, by id: so that
    an accelerator sends as few as that. All of them where nothing narrows them down, or one is NaN."""
    ids = torch.arange(len(logits), device=logits.device)
    most = params.candidates
    if not 0 < most < len(logits):
        return logits, ids
    least = logits.topk(most).values[-1]
    kept = ((logits >= least) | logits.isnan()).nonzero().squeeze(1)
    return logits[kept], ids[kept]


class Sampler:
    """Draws one sequence's tokens with a generator of its own, so batch neighbours cannot change them."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def sample(
        self,
        logits: Tensor,
        tokens: Sequence[int] = (),
        highest: Highest | None = None,
        allowed: Tensor | None = None,
    ) -> int:
        """The next token after `tokens`, for `logits` [vocab], on any device and of any float type; `highest`: who may know the
        highest of them already; `allowed`: ids of those that it may be, int64, ascending, at least one; None for any.

        Greedy takes the lowest id on ties. A logit of -inf bans its token. Raises DaliError where one is NaN
        or +inf, or all are -inf.
        """
        ids = allowed
        if not self.params.penalises and allowed is None:
            most = self.params.candidates
            if highest and 0 < most < len(logits) and (found := highest(most)) is not None:
                logits, places = likeliest(found[0], self.params)
                ids = found[1][places]
            elif logits.device.type != "cpu":
                logits, ids = likeliest(logits.detach(), self.params)
        logits = in_float32(logits.detach().cpu())
        if tokens and self.params.penalises:
            logits = penalised(logits, tokens, self.params)
        if allowed is not None:
            logits = logits[allowed]
        row = logits.numpy()
        token = int(row.argmax())  # NaN if any logit is
        best = float(row[token])
        if not math.isfinite(best):
            raise DaliError(
                f"The model's logits are not finite (their maximum is {best}), so no token can be chosen.",
                "Check the model's files for damage, or load it in a wider format (bf16 or f32).",
            )
        if self.params.temperature > 0:
            places, weights = distribution(logits, self.params)
            token = int(places[torch.multinomial(weights, 1, generator=self._generator)])
        return token if ids is None else int(ids[token])


def in_float32(logits: Tensor) -> Tensor:
    """Converted piece by piece, each too small for torch to wake a thread, which takes longer than the conversion."""
    if logits.dtype == torch.float32:
        return logits
    wide = torch.empty(len(logits))
    for to, piece in zip(torch.split(wide, PIECE), torch.split(logits, PIECE), strict=True):
        to.copy_(piece)
    return wide


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object, most: float, least: float = 0) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _refused(name: str, value: object, fix: str) -> UsageError:
    return UsageError(f"{name} is {value!r}, which it cannot be.", fix)
