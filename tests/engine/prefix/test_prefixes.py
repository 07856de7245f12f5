"""Many conversations that share prefixes: what each takes over, from RAM, from disk, and where its layers can go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dali
from conversing import END, Greedy, _sequence
from dali.engine.engine import OPENING
from dali.engine.prefix.folder import Folder
from dali.engine.prefix.prefixes import SPACING, Prefixes
from dali.engine.prefix.reading import Reading
from dali.engine.prefix.tree import Node
from dali.engine.sequence import Sequence
from dali.hooks.recurrent import LinearAttentionState
from dali.llm import LLM
from dali.step.kept import Kept, KeptState, KeptTokens
from decoding_families import DECODING, decoding_model
from families import FAMILIES, random_model, save_model

PLAIN, WINDOWED, RECURRENT = "qwen3_moe", "gpt_oss", "lfm2_moe"
CONTEXT = 512


def words(seed: int, tokens: int) -> list[int]:
    return torch.randint(3, 97, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


SYSTEM = [*words(0, 99), END]


@pytest.fixture(scope="module", params=[PLAIN, WINDOWED, RECURRENT])
def llm(request, tmp_path_factory) -> Iterator[LLM]:
    family: str = request.param
    if family not in FAMILIES and family not in DECODING:
        pytest.skip("transformers writes it otherwise")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        make = random_model if family in FAMILIES else decoding_model
        model = make(family, max_position_embeddings=CONTEXT)
        with dali.load(save_model(model, tmp_path_factory.mktemp("model")), quant="w8") as llm:
            llm.family = family  # type: ignore[attr-defined]
            yield llm


@pytest.fixture
def reopen(llm, tmp_path) -> Any:
    """A new engine over the test's folder, or over none."""
    prefixes: Prefixes = llm.engine.prefixes

    def reopen(ram: int = 2**30, disk: bool = False, identity: str = "tiny") -> Prefixes:
        llm.engine.prefixes.close()
        llm.engine.forget()
        folder = Folder(str(tmp_path), 2**30, pytest.fail) if disk else None
        window = prefixes.block if prefixes.block < 64 else None
        llm.engine.prefixes = Prefixes(ram, folder, identity, prefixes.recurrent, window)
        return llm.engine.prefixes

    reopen()
    yield reopen
    llm.engine.prefixes.close()
    llm.engine.prefixes = prefixes


def ask(llm: LLM, *prompts: list[int], answer: int = 3, fresh: bool = False) -> list[Sequence]:
    sequences = [_sequence(prompt, answer) for prompt in prompts]
    llm.loop.complete(sequences, fresh=fresh)
    return sequences


def logits(sequence: Sequence) -> torch.Tensor:
    assert isinstance(sequence.sampler, Greedy)
    return torch.stack(sequence.sampler.logits)


def test_conversations_take_turns_and_none_is_read_twice(llm, reopen):
    reopen()
    first, second = [*SYSTEM, *words(1, 30), END], [*SYSTEM, *words(2, 70), END]
    ask(llm, first)
    (other,) = ask(llm, second)
    assert other.cached_tokens == len(SYSTEM)  # recurrent layers: a message ended there
    for seed in range(3, 7):
        for prompt in (first, second):
            (turn,) = ask(llm, prompt)
            prompt[:] = [*turn.tokens, END, *words(seed, 40), END]
            (turn,) = ask(llm, prompt)
            # The last token of an answer is not computed.
            assert turn.cached_tokens == len(prompt) - 42 - 1
            (alone,) = ask(llm, prompt, fresh=True)
            assert alone.cached_tokens == 0
            assert torch.equal(logits(turn), logits(alone))


def test_a_prompt_that_parts_anywhere_is_gone_on_from_there(llm, reopen):
    prompt = words(1, 200)
    for at in (3, 64, 100, 127, 168, 199):
        reopen()
        ask(llm, prompt)
        ask(llm, words(9, 5))  # so that the last one's own state is another's
        (fork,) = ask(llm, [*prompt[:at], *words(at, 4)])
        places = [place for place in (0, 200 - OPENING, 199) if place <= at]
        assert fork.cached_tokens == (places[-1] if llm.family == RECURRENT else at)


def test_a_border_near_the_end_stands_for_other_places_there(llm, reopen):
    """States are large: where a message ends before the answer's opening, later turns need no other."""
    if llm.family != RECURRENT:
        pytest.skip("others go on from anywhere")
    prompt = [*SYSTEM, *words(1, 80), END, 7, 8, 9]
    for at in (150, 181, 182, 183):
        reopen()
        ask(llm, prompt)
        ask(llm, words(9, 5))
        assert ask(llm, [*prompt[:at], 5])[0].cached_tokens == (181 if at >= 181 else 100)


def test_who_comes_while_another_still_runs_shares_its_beginning(llm, reopen):
    reopen()
    first, second = _sequence([*SYSTEM, *words(1, 60)], 50), _sequence([*SYSTEM, *words(2, 60)], 2)
    llm.engine.add(first)
    for _ in range(4):
        llm.engine.step()
    llm.engine.add(second)
    while llm.engine.step():
        pass
    block = llm.engine.prefixes.block
    assert second.cached_tokens == (100 if llm.family == RECURRENT else 100 // block * block + (100 % block))


def test_an_answer_that_was_broken_off_serves_as_well(llm, reopen):
    reopen()
    broken = _sequence([*SYSTEM, *words(1, 20)], 50)
    llm.engine.add(broken)
    for _ in range(10):
        llm.engine.step()
    llm.engine.abort(broken)
    ask(llm, words(9, 5))
    (again,) = ask(llm, [*broken.tokens, 7])
    assert again.cached_tokens == broken.computed > 120
    assert torch.equal(logits(again), logits(ask(llm, [*broken.tokens, 7], fresh=True)[0]))


def test_a_restart_over_a_folder_finds_all_again(llm, reopen):
    reopen(disk=True)
    prompt = [*SYSTEM, *words(1, 57), END]
    (turn,) = ask(llm, prompt)
    whole = [*turn.tokens[:-1], *words(2, 9)]
    expected = logits(ask(llm, whole, fresh=True)[0])
    for ram in (2**30, 0):
        prefixes = reopen(ram, disk=True)
        (again,) = ask(llm, whole)
        assert again.cached_tokens >= len(turn.tokens) - 1  # the second time, `whole` has left more
        assert prefixes.taken == {"ram": 0, "disk": again.cached_tokens}
        assert torch.equal(logits(again), expected)
        assert (prefixes.tree.nbytes > 0) == (ram > 0)
    reopen(disk=True, identity="other")
    assert ask(llm, whole)[0].cached_tokens == 0
    reopen(disk=True)
    ask(llm, words(9, 5))
    assert ask(llm, [*SYSTEM, 5, 6])[0].cached_tokens == (
        100 if llm.family == RECURRENT else 100 // prefixes.block * prefixes.block
    )


def test_damaged_files_cost_time_and_nothing_else(llm, reopen, tmp_path):
    reopen(disk=True)
    prompt = [*SYSTEM, *words(1, 150), END]
    ask(llm, prompt)
    expected = logits(ask(llm, prompt, fresh=True)[0])
    reopen(disk=True)
    for seed, path in enumerate(sorted(tmp_path.iterdir())):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) - 1 - seed % 2])
        prefixes = reopen(disk=True)
        assert prefixes.folder is not None
        prefixes.folder._notify = lambda message: None
        (again,) = ask(llm, prompt)
        assert torch.equal(logits(again), expected)
    reopen()
    for path in tmp_path.iterdir():
        path.unlink()
    reopen(disk=True)
    (again,) = ask(llm, prompt)
    assert again.cached_tokens == 0
    assert torch.equal(logits(again), expected)


def test_what_a_full_folder_loses_of_a_conversation_is_its_end(llm, reopen, tmp_path):
    prefixes = reopen(0, disk=True)
    prompt = [*SYSTEM, *words(1, 200)]
    ask(llm, prompt)
    prefixes.close()
    ask(llm, prompt)  # all files are there, and in use
    prefixes.close()
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    small = Folder(str(tmp_path), total // 2, pytest.fail)
    small.write("0" * 40 + ".block", [], Kept())
    small.flush()
    _, names = prefixes._blocks(tuple(prompt), 0, {})
    assert 100 < (len(names) - 1) * prefixes.block < 250


def test_two_engines_over_one_folder_serve_each_other(llm, reopen, tmp_path):
    mine = reopen(disk=True)
    (turn,) = ask(llm, [*SYSTEM, 5])
    assert mine.folder is not None
    mine.folder.flush()
    theirs = Prefixes(0, Folder(str(tmp_path), 2**30, pytest.fail), "tiny", mine.recurrent, mine.block)
    reading = Reading(theirs.folder)
    assert theirs.find((*turn.tokens, 9), 0, 0, reading) is None
    assert reading.wait(10)
    found = theirs.find((*turn.tokens, 9), 0, 0, reading)
    assert found is not None
    assert found.place == turn.computed


def test_no_budget_is_exceeded(llm, reopen):
    for budget in (1, 10**4, 10**5, 10**6):
        prefixes = reopen(budget)
        for seed in range(6):
            ask(llm, words(seed, 90), words(seed, 60))
            assert prefixes.tree.nbytes <= budget
        assert prefixes.stats()["bytes"] == prefixes.tree.nbytes


def test_without_a_budget_only_the_last_one_is_continued(llm, reopen):
    prefixes = reopen(0)
    assert not prefixes.enabled
    (turn,) = ask(llm, SYSTEM)
    assert ask(llm, [*turn.tokens, 5])[0].cached_tokens == len(turn.tokens) - 1
    ask(llm, words(9, 5))
    assert ask(llm, [*turn.tokens, 5])[0].cached_tokens == 0
    assert len(prefixes.tree) == 0


def test_who_shall_be_fresh_leaves_nothing(llm, reopen):
    prefixes = reopen()
    ask(llm, SYSTEM, fresh=True)
    assert len(prefixes.tree) == 0


def test_memory_that_runs_out_while_keeping_harms_no_answer(llm, reopen, monkeypatch):
    prefixes = reopen()
    ask(llm, SYSTEM)
    expected = logits(ask(llm, [*SYSTEM, *words(1, 90)], fresh=True)[0])

    def run_out(*arguments: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("dali.step.state.gather", run_out)
        (turn,) = ask(llm, [*SYSTEM, *words(1, 90)])
    assert torch.equal(logits(turn), expected)
    assert turn.cached_tokens > 0
    assert len(prefixes.tree) == 0


def test_places_that_nobody_asked_for_take_no_more_than_keys_and_values():
    def spacing(token_bytes: int, state_bytes: int) -> int:
        prefixes = Prefixes(2**40, recurrent=True)
        keys = torch.empty(1, 64, token_bytes, dtype=torch.uint8)
        state = torch.empty(state_bytes, dtype=torch.uint8)
        kept = Kept((KeptTokens(0, None, keys, keys[..., :0]),), (KeptState(1, LinearAttentionState, state),))
        prefixes.add(Node(prefixes.tree.root(0), tuple(range(64)), kept))
        return prefixes.spacing

    assert spacing(1000, 1000 * SPACING) == SPACING
    assert spacing(1000, 1000 * SPACING + 1) == 2 * SPACING
    assert spacing(10, 70 * SPACING) == 8 * SPACING


def test_long_prompts_of_recurrent_layers_have_places_on_the_way(llm, reopen):
    if llm.family != RECURRENT:
        pytest.skip("others go on from anywhere")
    prefixes = reopen()
    prefixes._spacing = 50
    prompt = words(1, 230)
    for step in (512, 37):
        llm.engine.scheduler.step_tokens = step
        for at, place in ((49, 0), (50, 50), (99, 50), (163, 150), (197, 150), (203, 200)):
            llm.engine.forget()
            ask(llm, prompt)
            ask(llm, words(9, 5))
            assert ask(llm, [*prompt[:at], 5])[0].cached_tokens == place
    llm.engine.scheduler.step_tokens = 512


def test_files_are_nobody_elses_business(reopen, tmp_path: Path):
    reopen(disk=True)
    assert list(tmp_path.iterdir()) == []
