import math
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dali.engine.sampling import Sampler, Sampling, SamplingParams, distribution, likeliest, penalised
from dali.errors import DaliError, UsageError

logits_rows = st.lists(st.integers(-120, 120), min_size=1, max_size=60, unique=True).map(
    lambda eighths: torch.tensor(eighths, dtype=torch.float32) / 8
)
some_params = st.builds(
    SamplingParams,
    temperature=st.floats(0.3, 3),
    top_k=st.integers(0, 70),
    top_p=st.just(1.0) | st.floats(0, 0.999),
    min_p=st.just(0.0) | st.floats(0.001, 1),
    seed=st.integers(0, 2**64 - 1),
)


def survivors(logits: Tensor, params: SamplingParams) -> set[int]:
    return set(distribution(logits, params)[0].tolist())


def survivors_in_transformers(logits: Tensor, params: SamplingParams, slack: float = 0.0) -> set[int]:
    """`slack` widens the filters, so that a token at a threshold may fall on either side."""
    scores = TemperatureLogitsWarper(params.temperature)(None, logits[None])
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(min(max(params.top_p + slack, 0.0), 1.0))(None, scores)
    if params.min_p > 0:
        scores = MinPLogitsWarper(min(max(params.min_p * (1 - slack), 0.0), 1.0))(None, scores)
    return set(scores[0].isfinite().nonzero().flatten().tolist())


@settings(deadline=None)
@given(logits_rows, some_params)
def test_the_same_tokens_survive_as_in_transformers(logits: Tensor, params: SamplingParams) -> None:
    narrow, wide = (survivors_in_transformers(logits, params, slack) for slack in (-1e-5, 1e-5))
    assert narrow <= survivors(logits, params) <= wide


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.5}, {1}),  # exactly 0.5: nothing has to cross
        ({"top_p": 0.51}, {1, 2}),  # the token that crosses is kept
        ({"top_p": 0.0}, {1}),
        ({"min_p": 0.5}, {1, 2}),  # exactly half of the likeliest is kept
        ({"min_p": 0.51}, {1}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 2, "top_p": 0.7}, {1, 2}),  # 2/3 and 1/3 of what top-k left
        ({"temperature": 0.5, "top_p": 0.7}, {1}),  # squared: 16/22
    ],
)
def test_filters_on_round_numbers(filters: dict[str, float], expected: set[int]) -> None:
    logits = torch.tensor([0.125, 0.5, 0.25, 0.125]).log2() * math.log(2)
    params = SamplingParams(**filters)
    assert survivors(logits, params) == expected == survivors_in_transformers(logits, params)


def test_top_k_keeps_ties_with_the_kth() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0])
    assert survivors(logits, SamplingParams(top_k=2)) == {1, 2, 3, 4}


@pytest.mark.parametrize("vocabulary", [1, 7, 50_000])
def test_equal_logits_leave_the_nucleus_its_share(vocabulary: int) -> None:
    size = len(survivors(torch.zeros(vocabulary), SamplingParams(top_p=0.5)))
    assert size == pytest.approx(math.ceil(vocabulary / 2), abs=vocabulary * 1e-3)


@settings(deadline=None)
@given(logits_rows, some_params, st.sampled_from([1e-300, 1e-20, 1.0, 1e20, 1e300]))
def test_draws_are_survivors_and_never_banned(logits: Tensor, params: SamplingParams, scale: float) -> None:
    params = replace(params, temperature=params.temperature * scale)
    logits[1:2] = -math.inf
    ids, weights = distribution(logits, params)
    assert weights.isfinite().all()
    sampler = Sampler(params)
    for _ in range(5):
        token = sampler.sample(logits)
        assert logits[token].isfinite()
        assert weights[ids == token] > 0


@pytest.mark.parametrize("temperature", [0.4, 1.5])
def test_draws_follow_the_probabilities(temperature: float) -> None:
    logits = torch.tensor([1.0, 0.0, 0.5, -0.5, 0.25])
    sampler = Sampler(SamplingParams(temperature=temperature, seed=7))
    drawn = Counter(sampler.sample(logits) for _ in range(4000))
    expected = 4000 * (logits.double() / temperature).softmax(0)
    assert chisquare([drawn[token] for token in range(5)], expected).pvalue > 1e-3


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40))
def test_greedy_takes_the_lowest_of_the_best(values: list[int]) -> None:
    sampler = Sampler(SamplingParams(temperature=0, top_k=1, top_p=0.1, min_p=0.5))
    assert sampler.sample(torch.tensor(values, dtype=torch.bfloat16)) == values.index(max(values))


def test_neighbours_and_the_global_generator_change_nothing() -> None:
    rows = torch.randn(20, 100, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(temperature=2.0, top_p=0.99, seed=11)
    alone = Sampler(params)
    expected = [alone.sample(row) for row in rows]
    sampler, neighbour = Sampler(params), Sampler(SamplingParams(seed=12))
    state = torch.get_rng_state()
    for row, token in zip(rows, expected, strict=True):
        neighbour.sample(row)
        assert sampler.sample(row) == token
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_is_the_only_difference() -> None:
    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(seed=seed))
        return [sampler.sample(torch.zeros(1000)) for _ in range(16)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    torch.manual_seed(0)
    first = draws(None)
    torch.manual_seed(0)
    assert draws(None) != first


@settings(deadline=None)
@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=40),
    st.integers(0, 12),
    st.sampled_from([0.0, 0.7]),
    st.booleans(),
)
def test_what_an_accelerator_sends_gives_the_same_token(
    values: list[int], top_k: int, temperature: float, nan: bool
) -> None:
    logits = torch.tensor(values, dtype=torch.bfloat16)
    if nan:
        logits[0] = math.nan
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=0.9, seed=3)
    sent, ids = likeliest(logits, params)
    assert torch.equal(logits[ids].nan_to_num(), sent.nan_to_num())
    if nan:
        assert sent.isnan().any()
        return
    if temperature:
        whole, weights = distribution(logits, params)
        places, of_sent = distribution(sent, params)
        assert torch.equal(ids[places], whole)
        assert torch.equal(of_sent, weights)
    else:
        assert Sampler(params).sample(logits) == int(ids[int(sent.argmax())])


def test_half_precision_logits_are_read_in_float32() -> None:
    logits = torch.randn(500, generator=torch.Generator().manual_seed(1)).bfloat16()
    params = SamplingParams(temperature=0.7, top_k=50, top_p=0.9, min_p=0.01)
    for ours, wanted in zip(distribution(logits, params), distribution(logits.float(), params), strict=True):
        assert ours.dtype == wanted.dtype
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("row", "maximum"),
    [([0.0, math.nan, 1.0], "nan"), ([0.0, math.inf, -math.inf], "inf"), ([-math.inf, -math.inf], "-inf")],
)
def test_broken_logits_are_an_error(temperature: float, row: list[float], maximum: str) -> None:
    with pytest.raises(DaliError, match=rf"not finite \(their maximum is {maximum}\)") as error:
        Sampler(SamplingParams(temperature=temperature)).sample(torch.tensor(row))
    assert not isinstance(error.value, UsageError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_tokens", value) for value in (0, -1, 1.5, True, "8")),
        *(("temperature", value) for value in (-0.1, math.inf, math.nan, 10**400, "0.7", None, True)),
        *(("top_k", value) for value in (-1, 2.0, True, None)),
        *(("top_p", value) for value in (-0.1, 1.1, math.nan, "1", None)),
        *(("min_p", value) for value in (-0.1, 1.1, math.nan, None)),
        *(("seed", value) for value in (-1, 2**64, 1.0, True)),
        *(("stop", value) for value in ("", [""], ("a", 1), None, 5)),
        *(("ignore_eos", value) for value in (1, None)),
        *(("repeat_penalty", value) for value in (0, -1.1, math.inf, math.nan, "1", None)),
        *(("repeat_last_n", value) for value in (-2, 64.0, True, None)),
        *(
            (f"{name}_penalty", value)
            for name in ("presence", "frequency")
            for value in (math.nan, -math.inf, "0")
        ),
        *(("logprobs", value) for value in (-1, True, 1.0)),
    ],
)
def test_bad_values_are_shown_with_a_way_out(name: str, value: object) -> None:
    with pytest.raises(UsageError) as error:
        SamplingParams(**{name: value})
    assert error.value.problem.startswith(f"{name} is {value!r}")
    assert error.value.fix.startswith("Give ")


def test_one_stop_string_is_as_good_as_a_list_of_it() -> None:
    assert SamplingParams(stop="END") == SamplingParams(stop=["END"]) == SamplingParams(stop=("END",))


def test_the_names_that_are_type_checked_are_those_of_the_parameters() -> None:
    assert list(Sampling.__annotations__) == ["params", *(field.name for field in fields(SamplingParams))]


def test_penalties_on_round_numbers() -> None:
    """As llama.cpp computes them: 2 occurs twice among the last four tokens, 0 and 3 once, 4 before them."""
    logits = torch.tensor([1.0, 1.0, 3.0, -2.0, 4.0])
    params = SamplingParams(repeat_penalty=2, repeat_last_n=4, frequency_penalty=0.25, presence_penalty=0.5)
    found = penalised(logits, [4, 2, 3, 2, 0], params)
    assert found.tolist() == [0.5 - 0.25 - 0.5, 1.0, 1.5 - 0.5 - 0.5, -4.0 - 0.25 - 0.5, 4.0]
    assert logits.tolist() == [1.0, 1.0, 3.0, -2.0, 4.0]


@pytest.mark.parametrize(
    ("params", "token"),
    [
        ({"repeat_penalty": 1e-300}, 1),
        ({"repeat_penalty": 1e300}, 2),
        ({"frequency_penalty": -1e300}, 1),
        ({"frequency_penalty": 1e300, "presence_penalty": -1e300}, 2),  # the penalties of two uses, less one
    ],
)
def test_no_penalty_is_taken_for_damage_of_the_model(params, token):
    sampler = Sampler(SamplingParams(temperature=0, repeat_last_n=-1, **params))
    assert sampler.sample(torch.tensor([1.0, 2.0, 3.0]), [1, 1]) == token


@settings(deadline=None)
@given(logits_rows, st.floats(0.1, 3), st.data())
def test_the_repeat_penalty_over_all_tokens_is_transformers(
    logits: Tensor, penalty: float, data: st.DataObject
) -> None:
    tokens = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=200))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens]), logits[None].clone())[0]
    found = penalised(logits, tokens, SamplingParams(repeat_penalty=penalty, repeat_last_n=-1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("penalty", "token"),
    [
        ({"repeat_penalty": 4.0}, 0),
        ({"presence_penalty": 2.5}, 0),
        ({"frequency_penalty": 2.5}, 0),
        ({"repeat_penalty": 4.0, "repeat_last_n": 0}, 1),
        ({"repeat_penalty": 4.0, "repeat_last_n": 1}, 1),
        ({}, 1),
    ],
)
def test_greedy_heeds_penalties(penalty: dict[str, float], token: int) -> None:
    sampler = Sampler(SamplingParams(temperature=0, **penalty))
    assert sampler.sample(torch.tensor([1.0, 3.0, -1.0]), [1, 2]) == token


def test_the_ends_of_the_ranges_are_allowed() -> None:
    SamplingParams(max_tokens=1, temperature=0, top_k=0, top_p=0, min_p=1, seed=2**64 - 1, stop=("a",))
    Sampler(SamplingParams(top_p=1, min_p=0, seed=2**64 - 1)).sample(torch.zeros(3))
