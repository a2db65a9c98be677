"""The language of mini_talk: a small grammar of sentences, and questions whose answers the question decides.

Texts are lower-case words joined by single spaces.  Nothing here knows about sound.

Two worlds that never share a text:

* *sentences* (`sentence`): digit strings, sums, commands, descriptions; for recognition and synthesis;
* *questions* (`ask`, `open_question`): an `Asked` has the question, its answer, and the `key`, the deciding last word
  or words of the answer.  Closed families (facts, sums, neighbours) have a fixed set of instances, each asked in many
  phrasings; the open family (repeat) has a new digit string in each question.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
]  # fmt: skip
DIGITS = NUMBERS[:10]
OPERANDS = NUMBERS[:7]  # every sum and difference of two is asked about, and none goes beyond twelve
COLOR_OF = {
    "sky": "blue", "sea": "blue", "grass": "green", "leaf": "green", "snow": "white", "milk": "white",
    "sun": "yellow", "rose": "red", "fire": "red", "night": "black",
}  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("day", "night"), ("up", "down"), ("fast", "slow"), ("old", "new"),
    ("on", "off"), ("open", "close"),
)  # fmt: skip
OPPOSITE_OF = dict(OPPOSITES) | {right: left for left, right in OPPOSITES}
LEGS_OF = {"cat": 4, "dog": 4, "horse": 4, "bird": 2, "fish": 0, "ant": 6, "spider": 8}
COLORS = sorted(set(COLOR_OF.values()))
SIZES = ("big", "small", "old", "new")
STATES = ("hot", "cold", "big", "small", "fast", "slow", "old", "new")
PLACES = ("kitchen", "bedroom", "garden", "hall")
SWITCHED = ("light", "fan", "radio")
OPENED = ("door", "window")

SENTENCE_KINDS = ("digits", "sum", "command", "description")
CLOSED_FAMILIES = ("color", "opposite", "legs", "plus", "minus", "after", "before")
OPEN_FAMILIES = ("repeat",)


@dataclass(frozen=True)
class Asked:
    """One question.  ``phrasing`` and ``instance``: the template and the fact of its ``family`` it was made of."""

    question: str
    answer: str
    key: str
    family: str
    phrasing: str
    instance: str


def sentence(kind: str, rng: random.Random) -> str:
    """One random sentence of a kind in `SENTENCE_KINDS`.

    >>> sentence("digits", random.Random(1))
    'five eight zero one'
    """
    return _SENTENCES[kind](rng)


def is_correct(answer: str, key: str) -> bool:
    """Does an answer end with its key?  The deciding words always stand last.

    >>> is_correct("three plus zero is three", "three"), is_correct("three plus zero is zero", "three")
    (True, False)
    """
    said, wanted = answer.lower().split(), key.split()
    return len(said) >= len(wanted) and said[-len(wanted) :] == wanted


def phrasings(family: str) -> tuple[str, ...]:
    """All templates of a family; ``{x}`` (and ``{y}``) stand for the instance.

    >>> len(phrasings("color")), phrasings("color")[0]
    (44, 'what color is the {x}')
    """
    asking, telling = _CORES[family]
    found = [f"{pre} {core} {post}" for core in asking for pre in _ASK_BEFORE for post in _AFTER]
    found += [f"{pre} {core} {post}" for core in telling for pre in _TELL_BEFORE for post in _AFTER]
    words = (text.split() for text in found)
    return tuple(" ".join(w) for w in words if w.count("please") < 2 and w.count("now") < 2)


def instances(family: str) -> tuple[tuple[str, str, str, str], ...]:
    """All instances of a closed family: (x, y, answer, key)."""
    return tuple(_instances(family))


def ask(family: str, phrasing: str, x: str, y: str, answer: str, key: str) -> Asked:
    """Put an instance into a template."""
    return Asked(phrasing.format(x=x, y=y), answer, key, family, phrasing, f"{x} {y}".strip())


def open_question(family: str, phrasing: str, digits: tuple[str, ...]) -> Asked:
    """A question about a digit string.

    >>> open_question("repeat", "say {x}", ("three", "five", "two")).answer
    'three five two'
    """
    answer = " ".join(digits)
    return ask(family, phrasing, answer, "", answer, answer)


def digit_strings(length: int) -> list[tuple[str, ...]]:
    """All strings of so many digits, in order."""
    found: list[tuple[str, ...]] = [()]
    for _ in range(length):
        found = [(*head, digit) for head in found for digit in DIGITS]
    return found


def vocabulary() -> list[str]:
    """Every word the grammar can say, sorted."""
    words: set[str] = set()
    for family in (*CLOSED_FAMILIES, *OPEN_FAMILIES):
        for template in phrasings(family):
            words.update(template.replace("{x}", " ").replace("{y}", " ").split())
    for family in CLOSED_FAMILIES:
        for x, y, answer, _ in instances(family):
            words.update(f"{x} {y} {answer}".split())
    words.update(NUMBERS, COLORS, SIZES, STATES, PLACES, SWITCHED, OPENED, LEGS_OF, ("turn", "in", "and", "from"))
    return sorted(words)


_ASK_BEFORE = ("", "please tell me", "tell me", "do you know")
_TELL_BEFORE = ("", "please", "can you", "now")
_AFTER = ("", "please", "now")
# family -> (question cores, command cores); a core may stand behind any of the openings above
_CORES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "color": (
        ("what color is the {x}", "what is the color of the {x}", "which color has the {x}", "the {x} has what color"),
        (),
    ),
    "opposite": (
        ("what is the opposite of {x}", "the opposite of {x} is what", "{x} is the opposite of what"),
        (),
    ),
    "legs": (
        ("how many legs has a {x}", "how many legs does a {x} have", "a {x} has how many legs",
         "what is the number of legs of a {x}"),
        (),
    ),
    "plus": (("what is {x} plus {y}", "how much is {x} plus {y}", "{x} plus {y} is what"), ("add {x} and {y}",)),
    "minus": (("what is {x} minus {y}", "how much is {x} minus {y}", "{x} minus {y} is what"), ("take {y} from {x}",)),
    "after": (("what comes after {x}", "which number comes after {x}", "what is the number after {x}"), ()),
    "before": (("what comes before {x}", "which number comes before {x}", "what is the number before {x}"), ()),
    "repeat": ((), ("repeat {x}", "say {x}", "repeat the number {x}")),
}  # fmt: skip


def _instances(family: str) -> Iterator[tuple[str, str, str, str]]:
    if family == "color":
        yield from ((x, "", f"the {x} is {key}", key) for x, key in COLOR_OF.items())
    elif family == "opposite":
        yield from ((x, "", f"the opposite of {x} is {key}", key) for x, key in OPPOSITE_OF.items())
    elif family == "legs":
        yield from ((x, "", f"a {x} has {NUMBERS[n]} legs", f"{NUMBERS[n]} legs") for x, n in LEGS_OF.items())
    elif family == "plus":
        for a, x in enumerate(OPERANDS):
            for b, y in enumerate(OPERANDS):
                yield x, y, f"{x} plus {y} is {NUMBERS[a + b]}", NUMBERS[a + b]
    elif family == "minus":
        for a, x in enumerate(OPERANDS):
            for b, y in enumerate(OPERANDS[: a + 1]):
                yield x, y, f"{x} minus {y} is {NUMBERS[a - b]}", NUMBERS[a - b]
    elif family == "after":
        yield from ((x, "", f"after {x} comes {key}", key) for x, key in zip(NUMBERS[:-1], NUMBERS[1:]))
    else:
        yield from ((x, "", f"before {x} comes {key}", key) for key, x in zip(NUMBERS[:-1], NUMBERS[1:]))


def _digits(rng: random.Random) -> str:
    return " ".join(rng.choices(DIGITS, k=rng.choice((3, 4, 4, 5))))


def _sum(rng: random.Random) -> str:
    """'c is a plus b' or three operands: true, from 0 to 12, never an answer's 'a plus b is c'."""
    while True:
        values = [rng.randrange(10) for _ in range(rng.choice((2, 3, 3)))]
        signs = [rng.choice((1, -1)) for _ in values[1:]]
        totals = [values[0]]
        for sign, value in zip(signs, values[1:]):
            totals.append(totals[-1] + sign * value)
        if all(0 <= total < len(NUMBERS) for total in totals):
            break
    left = NUMBERS[values[0]] + "".join(
        f" {'plus' if sign > 0 else 'minus'} {NUMBERS[value]}" for sign, value in zip(signs, values[1:])
    )
    right = NUMBERS[totals[-1]]
    return f"{right} is {left}" if len(values) == 2 or rng.random() < 0.5 else f"{left} is {right}"


def _command(rng: random.Random) -> str:
    adjective = rng.choice(("", "", *SIZES, *COLORS))
    if rng.random() < 0.6:
        verb, thing = f"turn {rng.choice(('on', 'off'))}", rng.choice(SWITCHED)
    else:
        verb, thing = rng.choice(("open", "close")), rng.choice(OPENED)
    place = rng.choice(PLACES)
    target = rng.choice(
        (f"the {adjective} {thing} in the {place}", f"the {adjective} {place} {thing}", f"the {adjective} {thing}")
    )
    before, after = rng.choice((("", ""), ("please", ""), ("", "please"), ("", "now"), ("can you", ""), ("now", "")))
    return " ".join(f"{before} {verb} {target} {after}".split())


def _description(rng: random.Random) -> str:
    who = f"the {rng.choice(('', *SIZES))} {rng.choice(('', *COLORS))} {rng.choice(tuple(LEGS_OF))}"
    what = rng.choice((*COLOR_OF, *SWITCHED, *OPENED))
    text = rng.choice(
        (
            f"{who} is in the {rng.choice(PLACES)}",
            f"{who} is {rng.choice(STATES)}",
            f"{who} comes from the {rng.choice(PLACES)}",
            f"the {what} in the {rng.choice(PLACES)} is {rng.choice((*COLORS, *STATES))}",
            f"you know the {rng.choice(SIZES)} {rng.choice(tuple(LEGS_OF))} and the {rng.choice(COLORS)} {what}",
        )
    )
    return " ".join(text.split())


_SENTENCES = {"digits": _digits, "sum": _sum, "command": _command, "description": _description}
