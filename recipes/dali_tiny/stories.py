"""Short stories with a plot, and little plays between two characters."""

from __future__ import annotations

from grammar import Grammar, Scene, capitalised


def story(grammar: Grammar, hero: Scene | None = None, short: bool = False) -> str:
    """An opening, traits, the beats of a plot, perhaps a moral and an ending; `short` leaves beats out."""
    words, chance = grammar.words, grammar.random.random
    plot = words["plots"][grammar.random.choice(list(words["plots"]))]
    scene = grammar.scene(hero)
    grammar.add_props(scene)
    scene["lesson"] = grammar.choose(plot["lesson"], scene)
    scene["truth"] = grammar.choose(plot["truth"], scene)
    scene["Truth"] = capitalised(scene["truth"])

    sentences = [grammar.choose(words["openings"], scene)]
    traits = grammar.random.sample(words["traits"], grammar.random.choice([0, 1, 1, 2]))
    sentences += [grammar.expand(trait, scene) for trait in traits]
    for i, beat in enumerate(plot["beats"]):
        if short and 0 < i < len(plot["beats"]) - 1 and chance() < 0.15:
            continue
        sentences.append(grammar.choose(beat, scene))
        if chance() < 0.06 and len(beat) > 1:  # say it in a second way, unless that starts the story again
            again = grammar.choose(beat, scene)
            begins = again.split()[0] in ("One", "Once") or scene["time"] in again
            if again != sentences[-1] and not begins:
                sentences.append(again)
    if chance() < 0.75:
        sentences.append(grammar.choose(words["morals"], scene))
    if ending := grammar.choose(words["endings"], scene):
        sentences.append(ending)

    text = capitalised(sentences[0].strip())
    for i, sentence in enumerate(sentences[1:], 1):
        new_paragraph = chance() < 0.10 or (i == 2 and chance() < 0.3)
        text += ("\n" if new_paragraph else " ") + capitalised(sentence.strip())
    return text


def play(grammar: Grammar) -> str:
    """Two characters talk: as "Name: line" or as a told dialogue."""
    scene, chance = grammar.scene(), grammar.random.random
    grammar.add_props(scene)
    as_script = chance() < 0.5
    lines = grammar.random.choice(grammar.words["plays"])
    lines = lines[: grammar.random.randint(2, len(lines))]
    hero, friend = scene["n"], scene["m"]
    if as_script:
        return "\n".join(
            f"{hero}: {grammar.expand(line, scene)}\n{friend}: {grammar.expand(answer, scene)}"
            for line, answer in lines
        )
    meeting = "[One day|In the morning|After lunch|In the evening], {n} met {m} "
    told = [grammar.expand(meeting + "[in the {place2}|on the road|by the river].", scene)]
    for line, answer in lines:
        line, answer = grammar.expand(line, scene), grammar.expand(answer, scene)
        told.append(f"{quoted(line)} {'asked' if line.endswith('?') else 'said'} {hero}.")
        verb = grammar.random.choice(["said", "answered", "replied"]) if answer.endswith(".") else "said"
        told.append(f"{quoted(answer)} {verb} {friend}.")
    return "\n".join(told) if chance() < 0.4 else " ".join(told)


def quoted(line: str) -> str:
    """In quotation marks, as before "said": a full stop turns into a comma."""
    return f'"{line[:-1]},"' if line.endswith(".") else f'"{line}"'
