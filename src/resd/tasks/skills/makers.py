"""Prompts of each group of skills, each with the judge of its answer and a right answer.

Everything is drawn from lists and numbers that stand here, by a generator that is given.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WORDS = (
    *("river", "stone", "garden", "winter", "bridge", "silver", "candle", "forest", "window"),
    *("market", "island", "button", "engine", "pepper", "basket", "thunder", "mirror", "lemon"),
    *("violin", "harbor", "ladder", "meadow", "pocket", "rabbit", "saddle", "tunnel", "velvet"),
)
TOPICS = (
    *("the sea", "bread", "mountains", "trains", "cats", "rain", "music", "a market", "bicycles"),
    *("sleep", "snow", "tea", "books", "the moon", "a garden", "shoes", "bees", "a long walk"),
    *("paper", "autumn", "a ship", "honey", "clouds", "a clock", "friends", "salt", "dreams"),
)
KINDS = ("animals", "colours", "fruits", "cities", "tools", "vegetables", "countries", "sports")
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jana", "Kai", "Lea")
KEYS = ("name", "age", "city", "price", "count", "active", "colour", "size", "year", "score")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Skill:
    """One problem.

    Attributes:
        prompt: what is asked.
        judge: a name in `resd.tasks.skills.judges`.
        wanted: what the judge compares with; plain data.
        gold: an answer that passes.
    """

    prompt: str
    judge: str
    wanted: Any
    gold: str


def arithmetic(rng: random.Random) -> Skill:
    """Sums, differences, products, and two steps; the last number of the answer counts."""
    a, b, c = rng.randint(12, 99), rng.randint(12, 99), rng.randint(2, 9)
    text, value = rng.choice(
        [
            (f"What is {a} + {b}?", a + b),
            (f"What is {a + b} - {b}?", a),
            (f"What is {a} * {c}?", a * c),
            (f"What is {a} + {b} - {c}?", a + b - c),
            (
                f"A box holds {c} rows of {b} nuts. How many nuts are in the box?",
                c * b,
            ),
            (f"{rng.choice(NAMES)} has {a} stamps and buys {b} more. How many are that?", a + b),
        ]
    )
    return Skill(f"{text} Answer with the number alone.", "number", value, str(value))


def length(rng: random.Random) -> Skill:
    """Exactly so many words, lines or sentences."""
    n, topic, kind = rng.randint(2, 7), rng.choice(TOPICS), rng.choice(KINDS)
    which = rng.randrange(3)
    if which == 0:
        prompt = f"Write exactly {n} words about {topic}, and nothing else."
        return Skill(prompt, "words", n, " ".join(WORDS[:n]))
    if which == 1:
        prompt = f"List exactly {n} {kind}, one on each line, without numbers and nothing else."
        return Skill(prompt, "lines", n, "\n".join(WORDS[:n]))
    n = rng.randint(2, 4)
    prompt = f"Write exactly {_NUMBERS[n]} sentences about {topic}."
    return Skill(prompt, "sentences", n, " ".join(["It is so."] * n))


def form(rng: random.Random) -> Skill:
    """Capitals, small letters, how an answer begins or ends."""
    topic, word = rng.choice(TOPICS), rng.choice(WORDS)
    which = rng.randrange(4)
    if which == 0:
        prompt = f"Write one sentence about {topic}, in capital letters only."
        return Skill(prompt, "upper", None, "IT IS SO.")
    if which == 1:
        prompt = f"Write one sentence about {topic}, in small letters only, no capital letter."
        return Skill(prompt, "lower", None, "it is so.")
    if which == 2:
        prompt = f'Write one sentence about {topic}. Its first word must be "{word.capitalize()}".'
        return Skill(prompt, "starts", word, f"{word.capitalize()} it is.")
    # A copy of the prompt must not pass.
    prompt = f'The last word must be "{word}". Write one sentence about {topic}.'
    return Skill(prompt, "ends", word, f"It is a {word}.")


def inclusion(rng: random.Random) -> Skill:
    """Words that an answer must hold, or must not."""
    topic = rng.choice(TOPICS)
    first, second = rng.sample(WORDS, 2)
    which = rng.randrange(3)
    if which == 0:
        prompt = f'Write one sentence with the words "{first}" and "{second}", without "the".'
        return Skill(prompt, "holds", ((first, second), ("the",)), f"A {first} and a {second}.")
    if which == 1:
        prompt = f'Write one sentence about {topic} with the word "{first}", without "the".'
        return Skill(prompt, "holds", ((first,), ("the",)), f"A {first} is here.")
    letter = rng.choice("bkwy")
    prompt = f'Write three words that do not hold the letter "{letter}", separated by commas.'
    return Skill(prompt, "without_letter", letter, "sun, moon, rain")


def json_form(rng: random.Random) -> Skill:
    """A JSON object or list with given keys and values."""
    if rng.randrange(3) == 0:
        numbers = [rng.randint(1, 99) for _ in range(rng.randint(3, 5))]
        shown = ", ".join(map(str, numbers))
        return Skill(
            f"Write these numbers as a JSON list, in this order, and nothing else: {shown}.",
            "json",
            numbers,
            json.dumps(numbers),
        )
    keys = rng.sample(KEYS, rng.randint(2, 3))
    values = [rng.choice((rng.randint(1, 99), rng.choice(NAMES), True, False)) for _ in keys]
    wanted = dict(zip(keys, values, strict=True))
    listed = ", ".join(f'"{key}" with the value {json.dumps(v)}' for key, v in wanted.items())
    prompt = f"Write a JSON object with these keys and nothing else: {listed}."
    return Skill(prompt, "json", wanted, json.dumps(wanted))


def lists(rng: random.Random) -> Skill:
    """Sort, reverse, pick, count; one form of answer."""
    words = rng.sample(WORDS, rng.randint(3, 5))
    shown = ", ".join(words)
    which = rng.randrange(4)
    if which == 0:
        answer = ", ".join(sorted(words))
        prompt = f"Sort these words by the alphabet, separated by commas, nothing else: {shown}"
    elif which == 1:
        answer = ", ".join(reversed(words))
        prompt = f"Write these words in reverse order, separated by commas, nothing else: {shown}"
    elif which == 2:
        place = rng.randrange(len(words))
        answer = words[place]
        prompt = f"Which is word number {place + 1} of this list? Only that word: {shown}"
    else:
        numbers = rng.sample(range(10, 99), 4)
        answer = str(max(numbers))
        shown = ", ".join(map(str, numbers))
        prompt = f"Which is the largest of these numbers? Only that number: {shown}"
    return Skill(prompt, "list", answer, answer)


def copying(rng: random.Random) -> Skill:
    """Repeat, fill in, rewrite by a stated rule."""
    words = rng.sample(WORDS, 3)
    name, n = rng.choice(NAMES), rng.randint(2, 4)
    which = rng.randrange(3)
    if which == 0:
        sentence = f"{name} saw a {words[0]} near the {words[1]}."
        return Skill(
            f"Repeat this sentence word for word, and nothing else: {sentence}",
            "exact",
            sentence,
            sentence,
        )
    if which == 1:
        answer = " ".join([words[0]] * n)
        prompt = f'Write the word "{words[0]}" {_NUMBERS[n]} times on one line, nothing else.'
        return Skill(prompt, "exact", answer, answer)
    sentence = f"{name} carries the {words[0]} to the {words[1]}."
    prompt = (
        f'Replace "{words[0]}" by "{words[2]}" and write the sentence, nothing else: {sentence}'
    )
    answer = sentence.replace(words[0], words[2])
    return Skill(prompt, "exact", answer, answer)


def code(rng: random.Random) -> Skill:
    """What a line of Python gives."""
    a, b, word = rng.randint(2, 9), rng.randint(2, 9), rng.choice(WORDS)
    numbers = [rng.randint(1, 20) for _ in range(4)]
    text, value = rng.choice(
        [
            (f"len({word!r})", len(word)),
            (f"{word!r}.upper()", word.upper()),
            (f"{word!r}[0]", word[0]),
            (f"max({numbers})", max(numbers)),
            (f"sum({numbers[:3]})", sum(numbers[:3])),
            (f"{a} * {b}", a * b),
            (f"{numbers}[1]", numbers[1]),
            (f"{a} > {b}", a > b),
        ]
    )
    prompt = f"What does this Python print? Answer with the output alone.\n\nprint({text})"
    return Skill(prompt, "exact", str(value), str(value))


GROUPS: dict[str, Callable[[random.Random], Skill]] = {
    "arithmetic": arithmetic,
    "length": length,
    "form": form,
    "inclusion": inclusion,
    "json": json_form,
    "lists": lists,
    "copying": copying,
    "code": code,
}
