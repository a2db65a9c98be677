"""Length rules: how many codes an audio span may or must have, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass

from ttt.interfaces import LengthRule
from ttt.registry import NonNegativeInt, PositiveInt
from ttt.registry.families import LENGTH


@LENGTH.register("until_eoa")
@dataclass(frozen=True)
class UntilEoa(LengthRule):
    """A span ends where the model writes its end token; after ``limit`` codes the end token is forced."""

    limit: PositiveInt = 2600

    def exact_codes(self, last: bool) -> int | None:
        """No fixed number."""
        return None

    def max_codes(self, last: bool) -> int:
        """``limit``."""
        return self.limit


@LENGTH.register("fixed")
@dataclass(frozen=True)
class Fixed(LengthRule):
    """Ordinary spans have exactly ``codes`` codes, then the end token (26 in the official data); the last one is free.

    With ``last_codes`` > 0 the last one has exactly that many: for models that never learnt where speech ends.
    """

    codes: PositiveInt = 26
    limit: PositiveInt = 2600
    last_codes: NonNegativeInt = 0

    def exact_codes(self, last: bool) -> int | None:
        """``codes`` for ordinary spans, ``last_codes`` if set."""
        return (self.last_codes or None) if last else self.codes

    def max_codes(self, last: bool) -> int:
        """``limit`` for a free last span."""
        return (self.last_codes or self.limit) if last else self.codes


@LENGTH.register("budget")
@dataclass(frozen=True)
class Budget(LengthRule):
    """At most ``codes`` codes, then the end token is forced; the answer's last span has a budget of its own."""

    codes: PositiveInt = 26
    last_codes: PositiveInt = 2600

    def exact_codes(self, last: bool) -> int | None:
        """No fixed number: the model may end a span earlier."""
        return None

    def max_codes(self, last: bool) -> int:
        """``codes``, or ``last_codes`` for the last span."""
        return self.last_codes if last else self.codes
