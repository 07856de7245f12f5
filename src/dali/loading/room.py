"""Whether a model has room in memory, and how a budget is shared out: decided by sizes alone, for loading and for whoever tells
before a download what loading will find. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dali.errors import DaliError, UsageError, parameter
from dali.hardware.profile import OWN, Profile
from dali.options import LoadOptions
from dali.policies.once.alone import Worth, loses
from dali.policies.once.vram import Experts, Split, split_as_asked, split_by_time
from dali.units import enough, size

if TYPE_CHECKING:
    from dali.kernels.expert import ExpertLayout

HEADROOM = 2**30  # bytes left to activations, keys and values, and Python, when quant "auto" decides
MARGIN = 2**29  # bytes left to others where nobody says how much dali may take
STEP = 512  # prompt tokens of chunks in a budget that is neither large nor small
SMALL_STEP = 256  # of those that are smaller for the sake of more experts
LEAST_STEP = 64  # and before a budget is refused
SPREAD = 2**24  # bytes by which what a process has differs from one run to the next
WORKING = (
    2**26
)  # bytes for what does not grow with a step: buffers, readers, a server's threads, the allocator's own
LOGIT_ROWS = 24  # of the vocabulary: logits of answers side by side, and what choosing a token makes of one's
LOADED = (
    2**26
)  # bytes that loading takes beside weights: modules, tables, the model's own Python; known only when it is done
STATES_SHARE = (
    4  # a part so large of what dense weights leave may go to keys and values, where no context is asked for,
)
PREFIX_SHARE = 16  # and one so large to the prefix cache
MOST_PREFIX = 2**30
CACHE_SHARE = 4  # of what is free beside a model that is all in RAM, for the prefix cache unless told
MOST_CACHE = 8 << 30
BUFFERS = 4  # of outputs by (token, choice) pair, that the runtime over an accelerator has on the host
STEP_SHARE = 12  # of the budget, for what a step takes for a while
MOST_STEP = 4096  # prompt tokens, in which others wait for theirs
DEVICE_WORK = 2**29  # an accelerator's bytes for logits, graphs, and what predicts routing
# Of a model. They are built, and counted, one after another: a damaged number would take hours.
MOST_LAYERS = 2000
FEWEST_TOKENS = 512  # of context, below which a budget is refused


class DoesNotFit(DaliError):
    """RAM cannot hold a model's experts: `layouts` are those that come nearest, beside `dense_bytes` of other weights."""

    layouts: list[ExpertLayout]
    dense_bytes: int


class Shares(NamedTuple):
    """What a budget of RAM goes to where experts are on disk. `context` in tokens, `states` and `prefixes` in bytes."""

    context: int
    states: int
    prefixes: int
    slots: int


class NoRoom(Exception):
    """A budget without room: for a token's experts of a layer, of which it would take `least` bytes; or, where `tokens` are said,
    for the context that was asked for: `states` bytes have room, which so many tokens take."""

    def __init__(self, least: int = 0, tokens: int = 0, states: int = 0) -> None:
        super().__init__(least, tokens, states)
        self.least, self.tokens, self.states = least, tokens, states


def needed(experts: int, dense: int) -> int:
    """Bytes that must be free for a model whose experts are all in RAM."""
    return experts + dense + HEADROOM


def beyond_headroom(states: int) -> int:
    """Bytes that must be free besides, for a context that was asked for and keeps `states`."""
    return max(states - HEADROOM // 4, 0)


def first_that_fits(experts: Sequence[int], dense: int, allowed: int) -> int | None:
    """Which of several formats, by the bytes of all experts in each, is the first that fits beside dense weights."""
    return next((i for i, nbytes in enumerate(experts) if needed(nbytes, dense) <= allowed), None)


def out_of_memory(
    what: object, format: str, need: int, smallest: int, ram: int | None, free: int
) -> DoesNotFit:
    """`what` needs too many bytes in `format`: what it may take (`ram` as asked, or all that is free) and what would fit."""
    limit = f"{size(free)} are free" if ram is None else f"{parameter('ram')} allows {size(ram)}"
    problem = f"{what} needs {size(need - HEADROOM)} of memory with {format} experts, and {size(HEADROOM)} to work in; {limit}."
    if smallest < need and smallest <= (free if ram is None else ram):
        return DoesNotFit(problem, f"With {parameter('quant')} w4 it needs {size(smallest - HEADROOM)}.")
    if ram is None:
        least = (
            f" ({size(smallest - HEADROOM)} at least, with {parameter('quant')} w4)"
            if smallest < need
            else ""
        )
        return DoesNotFit(problem, f"Close other programs, or choose a smaller model{least}.")
    least = f", or {parameter('quant')} w4 {parameter('ram')} {enough(smallest)}" if smallest < need else ""
    return DoesNotFit(
        problem,
        f"Give {parameter('ram')} {enough(need)}{least}, or choose a smaller model; {size(free)} are free.",
    )


def step_bytes(hidden: int, intermediate: int, top_k: int, widest: int, tokens: int, logits: int) -> int:
    """What a step of so many tokens takes for a while, at most, and so many logits.

    A token has its row of the hidden state in several places, what the `widest` linear of a layer makes of it (queries, keys,
    values and what attention makes of them; or gate, up and their product), each of its experts' rows, and one expert's values
    between its matrices: all in float32, and more than any family was seen to have (tests/loading/test_step_bytes.py).
    """
    token = (36 + 4 * top_k) * hidden + 24 * widest + 8 * intermediate
    return WORKING + tokens * token + 4 * logits


def staged_bytes(tokens: int, top_k: int, hidden: int) -> int:
    """What the runtime over an accelerator has on the host for a step of so many tokens."""
    return BUFFERS * 4 * tokens * top_k * hidden


def least_step(shrinks: bool) -> int:
    """Prompt tokens of the smallest chunks. `shrinks`: experts are quantized, and there is no accelerator; floats are computed in
    chunks as they are with all experts in RAM, whose bits they have."""
    return LEAST_STEP if shrinks else STEP


def least_bytes(used: int, dense: int, step: int, experts: int, states: int) -> int:
    """The smallest budget, beside `used` bytes, with experts on disk: dense weights, a step of the smallest chunks, a token's
    `experts` of one layer, and the `states` of the shortest context."""
    return used + LOADED + dense + step + experts + states


def too_small(what: object, least: int, ram: int | None, allowed: int) -> DaliError:
    """A budget in which not even a token's experts of one layer have room."""
    limit = f"{parameter('ram')} allows {size(allowed)}" if ram is not None else f"{size(allowed)} can be had"
    problem = f"{what} needs {size(least)} of memory even with its experts on disk; {limit}."
    if ram is None:
        return DaliError(problem, "Close other programs, or choose a smaller model.")
    return DaliError(problem, f"Give {parameter('ram')} {enough(least + SPREAD)} or more.")


def no_context(tokens: int, nbytes: int, none: NoRoom, ram: int | None) -> DaliError:
    """A budget of RAM, `ram` if somebody asked for it, in which the context that was asked for, and takes so many bytes, has no
    room."""
    more = nbytes - none.states + SPREAD
    otherwise = (
        "close other programs" if ram is None else f"give {parameter('ram')} {enough(ram + more)} or more"
    )
    return DaliError(
        f"The keys and values of {tokens} tokens may take {size(nbytes)}, and the budget of RAM has {size(none.states)} for "
        "them.",
        f"Lower {parameter('ctx_size')} to {none.tokens}, or {otherwise}.",
    )


def lossy_needs_ram(what: object) -> UsageError:
    """What is said of lossy parts where experts would be on disk."""
    return UsageError(
        f"RAM has no room for all experts of {what}, which {parameter('lossy')} needs there.",
        f"Leave {parameter('lossy')} out, raise {parameter('ram')}, or choose a smaller model.",
    )


def nothing_to_fetch(prefetch: str, name: str) -> DaliError:
    """What is said of reading experts ahead, where none is on disk."""
    return DaliError(
        f"{parameter('prefetch')} {prefetch} is about experts on disk, and {parameter('ram')} has room for all of {name}'s.",
        "Leave it out.",
    )


def step_tokens(
    usual: int,
    ram: int,
    step: Callable[[int], int],
    slots: Callable[[int], int],
    wanted: tuple[int, int],
    shrinks: bool,
) -> int:
    """Prompt tokens a step, of a model with quantized experts on disk: each chunk reads every expert that it needs once, so they
    are large, as long as what a step takes for a while, `step(tokens)` bytes, is a small part of the budget, and all else
    has room beside it.

    `slots(tokens)` tells how many experts then have room; `wanted`: those of a token in a layer, and in all. Without an
    accelerator (`shrinks`), where a token's do not all have room, next to none is there when the next token wants it: chunks are
    smaller where that gives them room, and where the budget would be refused, as small as may be. Chunks of half the tokens read
    all of a prompt's experts twice, for which a few slots more are no compensation.
    """
    tokens = usual
    least, whole = wanted
    while 2 * tokens <= MOST_STEP and STEP_SHARE * step(2 * tokens) <= ram and slots(2 * tokens) >= least:
        tokens *= 2
    if not shrinks:
        return tokens
    smaller = tokens
    while smaller > SMALL_STEP and STEP_SHARE * step(smaller) > ram and slots(smaller) < whole:
        smaller //= 2
    if slots(smaller) >= whole:
        tokens = smaller
    while tokens > LEAST_STEP and slots(tokens) < least:
        tokens //= 2
    return tokens


def share(
    rest: int,
    used: int,
    slot_bytes: int,
    slots: tuple[int, int],
    context: tuple[int, bool],
    prefixes: int | None,
    states: Callable[[int], int],
) -> Shares:
    """Share out `rest` bytes of RAM, beside `used` ones. slots: the fewest and the most; context: tokens, and whether they were
    asked for; prefixes: bytes as asked; states: of so many tokens. NoRoom: there is none."""
    most, asked = context
    fewest = states(min(FEWEST_TOKENS, most))
    least = slots[0] * slot_bytes
    if rest < least + fewest:
        raise NoRoom(least=used + least + fewest)
    room = max(min(rest // (1 if asked else STATES_SHARE), rest - least), fewest)
    tokens = most_tokens(most, room, states)
    if tokens < most and asked:
        raise NoRoom(tokens=tokens, states=room)
    whole = states(tokens)
    rest -= whole
    if prefixes is None:
        prefixes = min(rest // PREFIX_SHARE, MOST_PREFIX)
    return Shares(tokens, whole, prefixes, max(min((rest - prefixes) // slot_bytes, slots[1]), slots[0]))


def share_rest(
    what: object,
    ram: int,
    used: int,
    context: tuple[int, bool],
    prefixes: int | None,
    states: Callable[[int], int],
) -> Shares:
    """As `share`, of a budget that was asked for and has all experts among the `used` bytes: sequences have what the prefix cache
    leaves. DaliError: there is no room for the shortest context, or for the one that was asked for."""
    most, asked = context
    rest, fewest = ram - used, states(min(FEWEST_TOKENS, most))
    if rest < fewest:
        least = used + fewest
        raise DaliError(
            f"{what} needs {size(least)} of memory with the shortest context; {parameter('ram')} allows {size(ram)}.",
            f"Give {parameter('ram')} {enough(least + SPREAD)} or more.",
        )
    room = max(rest - (prefixes or 0), fewest)
    tokens = most_tokens(most, room, states)
    if tokens < most and asked:
        raise no_context(most, states(most), NoRoom(tokens=tokens, states=room), ram)
    if prefixes is None:
        prefixes = min((rest - states(tokens)) // CACHE_SHARE, MOST_CACHE)
    return Shares(tokens, max(rest - prefixes, fewest), prefixes, 0)


def most_tokens(most: int, room: int, states: Callable[[int], int]) -> int:
    """Tokens of context, at most so many, whose keys and values take no more than `room` bytes."""
    if states(most) <= room:
        return most
    low, high = 2, most
    while low + 1 < high:  # the first has room, the second has not
        tokens = (low + high) // 2
        low, high = (tokens, high) if states(tokens) <= room else (low, tokens)
    return low


def accelerates(worth: Worth, options: LoadOptions, profile: Profile, on_disk: bool) -> bool:
    """Whether the device that `options` name is used. One that loses is not, where this very machine was measured and nobody said
    how experts are to be split; a published profile may be wrong, a simulated device is there to be tried, and beside experts on
    disk nobody has weighed the reads."""
    free = measured_here(options, profile) and not options.splits and not on_disk
    return not (free and options.device_kind != "sim" and loses(*worth))


def measured_here(options: LoadOptions, profile: Profile) -> bool:
    """Whether it is this machine's own, and no figure of it is a published one."""
    return options.profile in (None, OWN) and profile.machine is not None and profile.label == "measured"


class Keeps(NamedTuple):
    """What a sequence of the whole context keeps, `tokens` in `whole` bytes, and what is there beside it while a layer moves."""

    tokens: int
    whole: int
    moving: int


def split_memory(options: LoadOptions, room: int, whole: int, experts: Experts) -> Split:
    """`room` bytes beside everything else, enough for one sequence that keeps `whole`: as options ask, else by modelled time."""
    asked = options.vram_bytes
    if asked is None and options.n_cpu_moe is not None:  # whole layers are there, or refused
        asked = max(experts.layers - options.n_cpu_moe, 0) * experts.experts * experts.slot
    if asked is not None:
        return split_as_asked(room, whole, options.parallel, asked)
    return split_by_time(room, whole, options.parallel, experts)


def simulated_room(options: LoadOptions, profile: Profile, name: str, dense: int, keeps: Keeps) -> int:
    """Bytes that a simulated accelerator has for experts and for what sequences keep, beside `dense` of weights of the model
    `name`. DaliError: too few for one whole context; UsageError: experts shall have more than that leaves."""
    asked = options.vram_bytes
    working = (
        DEVICE_WORK + keeps.moving if asked is None else 0
    )  # who says what experts shall have reckons with it
    memory = int(profile["gpu_memory"])
    room = memory - dense - working
    if room < keeps.whole:
        raise no_device_room(
            f"{profile.name} has {size(memory)}",
            name,
            dense,
            keeps._replace(moving=0),
            working,
            "choose another profile",
        )
    left = room - keeps.whole
    if asked is not None and asked > left:
        raise UsageError(
            f"{parameter('vram')} asks for {size(asked)}; {profile.name} has {size(left)} beside dense weights and the keys and "
            f"values of {keeps.tokens} tokens.",
            f"Give {parameter('vram')} {left // 2**20}MiB or less, lower {parameter('ctx_size')}, or choose another profile.",
        )
    return room


def no_device_room(
    there: str, what: object, dense: int, keeps: Keeps, working: int, otherwise: str
) -> DaliError:
    """An accelerator without room for a model. there: what it has, in words; otherwise: what helps beside a shorter context."""
    return DaliError(
        f"{there}; {what} needs {size(dense)} for dense weights, {size(keeps.whole + keeps.moving)} for the keys and values of "
        f"{keeps.tokens} tokens, and {size(working)} to work in.",
        f"Lower {parameter('ctx_size')}, {otherwise}, or use {parameter('device')} cpu.",
    )
