"""How text is normalised before it is compared; the name of the rule is part of every metric's name."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from ttt.interfaces import Normalizer
from ttt.registry.families import NORMALIZER

_APOSTROPHES = frozenset("'\u2018\u2019\u02bc\u0060\u00b4")


@NORMALIZER.register("none")
@dataclass(frozen=True)
class Verbatim(Normalizer):
    """The text as it stands, without blanks at its ends."""

    def normalize(self, text: str) -> str:
        """Strip the ends only."""
        return text.strip()


@NORMALIZER.register("words")
@dataclass(frozen=True)
class Words(Normalizer):
    """Lower case, punctuation out, one blank between words.

    Unicode is brought to NFKC.  An apostrophe joins (``don't`` -> ``dont``), all other punctuation and every symbol
    separates (``twenty-one`` -> ``twenty one``).  Numbers are not spelled out: ``2`` and ``two`` differ.

    >>> Words().normalize("  The sky's BLUE -- isn't it?")
    'the skys blue isnt it'
    """

    def normalize(self, text: str) -> str:
        """Lower-case words joined by single blanks."""
        return " ".join("".join(map(_letter, unicodedata.normalize("NFKC", text).lower())).split())


@NORMALIZER.register("chars")
@dataclass(frozen=True)
class Chars(Normalizer):
    """Like ``words``, then every letter is a word of its own: WER and CER under it are one number, and no blank counts.

    For scripts that put no blanks between words.

    >>> Chars().normalize("Ab, c!"), Chars().characters("Ab, c!")
    ('a b c', 'abc')
    """

    def normalize(self, text: str) -> str:
        """Letters joined by single blanks."""
        return " ".join(self.characters(text))

    def characters(self, text: str) -> str:
        """Letters alone."""
        return Words().normalize(text).replace(" ", "")


def _letter(c: str) -> str:
    if c in _APOSTROPHES:
        return ""
    return " " if unicodedata.category(c)[0] in "PSZC" else c
