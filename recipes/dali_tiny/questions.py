"""Arithmetic, and simple questions with their answers."""

from __future__ import annotations

from collections.abc import Callable

from grammar import Grammar, capitalised

Pair = tuple[str, str]


def sum_line(grammar: Grammar) -> str:
    """One line of a sheet of arithmetic."""
    kind, randint = grammar.random.random(), grammar.random.randint
    a, b = randint(0, 20), randint(0, 20)
    if kind < 0.3:
        return f"{a} + {b} = {a + b}"
    if kind < 0.5:
        a, b = max(a, b), min(a, b)
        return f"{a} - {b} = {a - b}"
    if kind < 0.65:
        a, b = randint(0, 10), randint(0, 10)
        return f"{a} x {b} = {a * b}"
    if kind < 0.72:
        b, c = randint(1, 10), randint(1, 10)
        return f"{b * c} / {b} = {c}"
    if kind < 0.78:
        a, b = randint(20, 99), randint(1, 99)
        return f"{a} + {b} = {a + b}"
    if kind < 0.86:
        start, step = randint(0, 30), grammar.random.choice([1, 1, 2, 3, 5, 10, -1])
        counted = [start + step * i for i in range(randint(5, 10))]
        if min(counted) < 0:
            return f"{a} is less than {a + 1 + b}."
        return "Count: " + ", ".join(map(str, counted))
    if kind < 0.93:
        relation = "greater than" if a > b else "less than" if a < b else "equal to"
        return f"{a} is {relation} {b}."
    a, b = randint(0, 10), randint(0, 10)
    number = grammar.words["numbers"]
    return capitalised(f"{number[a]} plus {number[b]} is {number[a + b]}.")


def word_problem(grammar: Grammar) -> Pair:
    words, choice, randint = grammar.words, grammar.random.choice, grammar.random.randint
    female = grammar.random.random() < 0.5
    name, he = choice(words["girls" if female else "boys"]), "She" if female else "He"
    things, a, b = choice(words["countables"]), randint(2, 15), randint(1, 9)
    other = choice([each for each in words["girls"] + words["boys"] if each != name])
    kind = grammar.random.randrange(4)
    if kind == 0:
        more = f"[{he} buys {b} more.|{other} gives {name} {b} more.|{he} finds {b} more.]"
        answer = (
            f"[{name} has {a} + {b} = {a + b} {things}."
            f"|{a} + {b} = {a + b}. {name} has {a + b} {things} now.]"
        )
        question = f"{name} has {a} {things}. {more} How many {things} does {name} have now?"
    elif kind == 1:
        a += b
        less = f"[gives {b} to {other}|loses {b}|sells {b}]"
        answer = (
            f"[{a} - {b} = {a - b}. {name} has {a - b} {things} left."
            f"|There are {a} - {b} = {a - b} {things} left.]"
        )
        question = f"{name} has {a} {things}. {he} {less}. How many {things} are left?"
    elif kind == 2:
        a, b = randint(2, 9), randint(2, 9)
        question = f"There are {a} boxes. Each box has {b} {things}. How many {things} are there?"
        answer = f"{a} x {b} = {a * b}. There are {a * b} {things}."
    else:
        question = f"{name} has {a} {things} and {other} has {b} {things}. Who has more {things}?"
        answer = "They have the same number."
        if a != b:
            winner, most, least = (name, a, b) if a > b else (other, b, a)
            answer = f"{winner} has more {things}, because {most} is greater than {least}."
    return grammar.expand(question), grammar.expand(answer)


def capital(grammar: Grammar) -> Pair:
    capitals = grammar.facts("capitals")
    country = grammar.random.choice(list(capitals))
    city = capitals[country]
    question = (
        f"[What is the capital of {country}?|Which city is the capital of {country}?"
        f"|Tell me the capital of {country}.]"
    )
    answer = f"[The capital of {country} is {city}.|{city} is the capital of {country}.]"
    return grammar.expand(question), grammar.expand(answer)


def opposite(grammar: Grammar) -> Pair:
    word, other = grammar.random.choice(list(grammar.facts("opposites").items()))
    question = grammar.expand(f"[What is the opposite of {word}?|Give me the opposite of {word}.]")
    return question, f"The opposite of {word} is {other}."


def sound(grammar: Grammar) -> Pair:
    animal, says = grammar.random.choice(list(grammar.facts("sounds").items()))
    question = grammar.expand(f"[What does a {animal} say?|What sound does a {animal} make?]")
    return question, grammar.expand(f"[A {animal} says {says}.|A {animal} goes {says}.]")


def home(grammar: Grammar) -> Pair:
    animal, where = grammar.random.choice(list(grammar.facts("homes_of_animals").items()))
    return grammar.expand(f"Where does a {animal} live?"), grammar.expand(f"A {animal} lives {where}.")


def food(grammar: Grammar) -> Pair:
    animal, what = grammar.random.choice(list(grammar.facts("food_of_animals").items()))
    return grammar.expand(f"What does a {animal} eat?"), grammar.expand(f"A {animal} eats {what}.")


def colour(grammar: Grammar) -> Pair:
    thing, is_colour = grammar.random.choice(list(grammar.facts("colours_of_things").items()))
    question = grammar.expand(f"[What colour is {thing}?|Which colour is {thing}?|What color is {thing}?]")
    return question, capitalised(f"{thing} is {is_colour}.")


def next_day(grammar: Grammar) -> Pair:
    days, i = grammar.words["lists"]["days"], grammar.random.randrange(7)
    question = grammar.expand(f"[What day comes after {days[i]}?|Which day is after {days[i]}?]")
    return question, f"{days[(i + 1) % 7]} comes after {days[i]}."


def next_month(grammar: Grammar) -> Pair:
    months, i = grammar.words["lists"]["months"], grammar.random.randrange(12)
    return f"Which month comes after {months[i]}?", f"{months[(i + 1) % 12]} comes after {months[i]}."


def naming(grammar: Grammar) -> Pair:
    lists = grammar.words["lists"]
    kind = grammar.random.choice(list(lists))
    n = grammar.random.choice([2, 3, 3, 4, 5])
    chosen = grammar.random.sample(lists[kind], n)
    question = grammar.expand(f"[Name|Give me|List] {grammar.words['numbers'][n]} {kind}.")
    return question, capitalised(", ".join(chosen[:-1]) + " and " + chosen[-1] + ".")


def meaning(grammar: Grammar) -> Pair:
    word, is_this = grammar.random.choice(list(grammar.facts("meanings").items()))
    return grammar.expand(f"What is {word}?"), capitalised(f"{word} is {is_this}.")


def instruction(grammar: Grammar) -> Pair:
    task, steps = grammar.random.choice(list(grammar.words["instructions"].items()))
    question = grammar.expand(f"[How do I {task}?|How can I {task}?|Tell me how to {task}.]")
    if grammar.random.random() < 0.4:
        return question, " ".join(steps)
    return question, "\n".join(f"{i}. {step}" for i, step in enumerate(steps, 1))


def mental_arithmetic(grammar: Grammar) -> Pair:
    a, b = grammar.random.randint(0, 20), grammar.random.randint(0, 20)
    operation = grammar.random.randrange(3)
    if operation == 0:
        question = f"[What is {a} + {b}?|What is {a} plus {b}?|{a} + {b} = ?|How much is {a} + {b}?]"
        answer = f"[{a} + {b} = {a + b}.|{a} plus {b} is {a + b}.]"
    elif operation == 1:
        a, b = max(a, b), min(a, b)
        question = f"[What is {a} - {b}?|What is {a} minus {b}?]"
        answer = f"[{a} - {b} = {a - b}.|{a} minus {b} is {a - b}.]"
    else:
        a, b = a % 11, b % 11
        question = f"[What is {a} x {b}?|What is {a} times {b}?]"
        answer = f"[{a} x {b} = {a * b}.|{a} times {b} is {a * b}.]"
    return grammar.expand(question), grammar.expand(answer)


def counting(grammar: Grammar) -> Pair:
    a, b = sorted(grammar.random.sample(range(1, 20), 2)) if grammar.random.random() < 0.8 else (1, 10)
    return f"Count from {a} to {b}.", ", ".join(map(str, range(a, b + 1))) + "."


KINDS: list[Callable[[Grammar], Pair]] = [
    capital,
    opposite,
    sound,
    home,
    food,
    colour,
    next_day,
    next_month,
    naming,
    meaning,
    instruction,
    mental_arithmetic,
    mental_arithmetic,
    word_problem,
    counting,
]


def question(grammar: Grammar) -> Pair:
    """A question of any kind, and its answer."""
    return grammar.random.choice(KINDS)(grammar)
