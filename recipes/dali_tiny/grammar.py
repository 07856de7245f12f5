"""A grammar that writes simple English out of grammar.toml: how words are drawn, and a story's scene."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
WORD = re.compile(r"\{(\w+)\}")
A_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=[aeioAEIO]|u[nmgps](?!i[cqtv]))")
SHE, HE = ("she", "her", "her"), ("he", "him", "his")

Scene = dict[str, str]


def capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


class Grammar:
    """Seeded: the same calls give the same text."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.words: dict[str, Any] = tomllib.loads((Path(__file__).parent / "grammar.toml").read_text())

    def facts(self, name: str) -> dict[str, str]:
        """A list of "thing: fact"."""
        return dict(fact.split(": ") for fact in self.words[name])

    def expand(self, template: str, scene: Mapping[str, str] | None = None) -> str:
        """Choose every [a|b], from the inside out, then put the scene's words in and mend "a apple"."""
        while found := ALTERNATIVES.search(template):
            choice = self.random.choice(found[1].split("|"))
            template = template[: found.start()] + choice + template[found.end() :]
        if scene:
            while WORD.search(template):  # a word of the scene may hold others
                template = WORD.sub(lambda key: scene[key[1]], template)
        return A_BEFORE_VOWEL.sub(r"\1n ", template)

    def choose(self, templates: Sequence[str], scene: Mapping[str, str] | None = None) -> str:
        return self.expand(self.random.choice(templates), scene)

    def character(self) -> Scene:
        """n, kind and pronouns of a child, a grown-up or an animal."""
        words, chance = self.words, self.random.random
        female = chance() < 0.5
        if chance() < 0.55:
            name = self.random.choice(words["girls" if female else "boys"])
            kind = "girl" if female else "boy"
            if chance() >= 0.85:
                kind = self.random.choice(words["female_roles" if female else "male_roles"])
        else:
            name, kind = self.random.choice(words["animal_names"]), self.random.choice(words["animals"])
        return {"n": name, "kind": kind, **pronouns("", female)}

    def scene(self, hero: Scene | None = None) -> Scene:
        """Hero, friend and everything around them, for one story."""
        words, choice = self.words, self.random.choice

        def two(name: str) -> list[str]:
            return self.random.sample(words[name], 2)

        drawn = self.character()  # drawn even for a given hero: the rest of the scene does not depend on it
        scene = {**(hero or drawn)}
        while True:
            friend = self.character()
            if friend["n"] != scene["n"] and friend["kind"] != scene["kind"]:
                break
        scene |= {"m": friend["n"], "kind2": friend["kind"]}
        scene |= {f"m{name}": friend[name] for name in ("he", "him", "his", "He", "His")}
        scene |= {"adj": choice(words["good"] + words["size"]), "adj2": choice(words["good"])}
        scene["size"] = choice(words["size"])
        for key, name in (("color", "colours"), ("toy", "toys"), ("food", "food")):
            scene[key], scene[f"{key}2"] = two(name)
        scene["fruit"] = choice(words["fruit"])
        scene["place"], scene["place2"] = two("places")
        scene["home"], scene["near"] = choice(words["homes"]), choice(words["near"])
        scene["elder"] = choice(words["elders"])
        scene |= pronouns("e", scene["elder"] in ("mother", "grandmother", "aunt"))
        scene["weather"] = two("weather")[0]
        scene["up"], scene["up2"] = two("glad")
        scene["down"], scene["down2"] = two("unhappy")
        scene["num"] = choice(words["numbers"][2:11])
        scene["hobby"] = self.choose(words["hobbies"], scene)
        scene["time"] = self.choose(words["times"], scene)
        return scene

    def add_props(self, scene: Scene) -> None:
        for name, templates in self.words["props"].items():
            scene[name] = self.choose(templates, scene)


def pronouns(prefix: str, female: bool) -> Scene:
    he, him, his = SHE if female else HE
    forms = {"he": he, "him": him, "his": his, "He": capitalised(he), "His": capitalised(his)}
    forms["himself"] = "herself" if female else "himself"
    return {f"{prefix}{name}": form for name, form in forms.items()}
