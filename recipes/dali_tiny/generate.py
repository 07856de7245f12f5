#!/usr/bin/env python3
"""Write the three domains of dali-tiny's text that come out of the grammar: stories, chat and math.

One .txt file a domain, documents separated by a NUL. The text carries no one else's rights, and it depends on
nothing but the three counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from corpus import write_domain
from grammar import Grammar, Scene
from questions import question, sum_line, word_problem
from stories import play, story

SEED = 20261122
TURN = "<|user|>\n{}<|end|>\n<|assistant|>\n{}<|end|>\n"


def story_request(grammar: Grammar) -> tuple[str, Scene | None]:
    """What a user may ask for, and the hero it names, None for any."""
    kind = grammar.random.random()
    if kind < 0.45:
        hero = grammar.character()
        ask = (
            "[Tell me a story|Tell me a short story|Write a story|Write a short story|Can you tell me a story"
            "|I want a story] about a {kind} [named|called] {n}."
        )
        return grammar.expand(ask, hero), hero
    if kind < 0.8:
        hero = grammar.character()
        ask = (
            "[Tell me a story|Tell me a short story|Write a story|Write a little story"
            "|Please tell me a story] about a {kind}."
        )
        return grammar.expand(ask, hero), hero
    ask = (
        "[Tell me a story.|Tell me a short story.|Can you tell me a story?|Write a story for children."
        "|I would like to hear a story.|Tell me a bedtime story.]"
    )
    return grammar.expand(ask), None


def conversation(grammar: Grammar) -> str:
    """A few turns in dali-tiny's chat format."""
    chance, small_talk = grammar.random.random, grammar.words["small_talk"]

    def talk(pairs: list[list[str]]) -> tuple[str, str]:
        asked, answer = grammar.random.choice(pairs)
        return grammar.expand(asked), grammar.expand(answer)

    turns: list[tuple[str, str]] = []
    if chance() < 0.30:
        asked, hero = story_request(grammar)
        turns.append((asked, story(grammar, hero, short=True)))
        if chance() < 0.15:
            thanks = "[Thank you!|That was a nice story.|I liked that story.|Thank you, that was nice.]"
            answer = "[You are welcome!|I am glad you liked it.|Thank you! Would you like another one?]"
            turns.append((grammar.expand(thanks), grammar.expand(answer)))
    else:
        if chance() < 0.15:
            turns.append(talk(small_talk[:2]))
        for _ in range(grammar.random.choice([1, 1, 2, 3, 4])):
            turn = question(grammar) if chance() < 0.85 else talk(small_talk)
            turns.append(turn)
    return "".join(TURN.format(*turn) for turn in turns)


def sheet(grammar: Grammar) -> str:
    """A page of arithmetic, or of questions with answers."""
    chance, n = grammar.random.random, grammar.random.randint(12, 30)
    if chance() < 0.6:
        return "\n".join(sum_line(grammar) for _ in range(n))
    pairs = [word_problem(grammar) if chance() < 0.6 else question(grammar) for _ in range(n // 3)]
    return "\n\n".join(f"Question: {asked}\nAnswer: {answer}" for asked, answer in pairs)


def story_or_play(grammar: Grammar) -> str:
    if grammar.random.random() < 0.86:
        return story(grammar, short=grammar.random.random() < 0.3)
    return play(grammar)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the .txt files")
    parser.add_argument("--stories", type=int, default=45000)
    parser.add_argument("--conversations", type=int, default=45000)
    parser.add_argument("--sheets", type=int, default=9000, help="of arithmetic and questions")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    grammar = Grammar(SEED)
    write_domain(options.out, "stories", [story_or_play(grammar) for _ in range(options.stories)])
    write_domain(options.out, "chat", [conversation(grammar) for _ in range(options.conversations)])
    write_domain(options.out, "math", [sheet(grammar) for _ in range(options.sheets)])


if __name__ == "__main__":
    main()
