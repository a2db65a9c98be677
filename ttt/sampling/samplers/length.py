"""How long a span may be and how it ends."""

from __future__ import annotations

from dataclasses import dataclass

from ttt.interfaces import LengthRule
from ttt.registry.families import LENGTH


@LENGTH.register("until_eoa")
@dataclass(frozen=True)
class UntilEoa(LengthRule):
    """A span ends where the model writes its end token; after ``limit`` codes the end token is forced."""

    limit: int = 2600

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit must be >= 1, got {self.limit}")

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

    codes: int = 26
    limit: int = 2600
    last_codes: int = 0

    def __post_init__(self) -> None:
        if self.codes < 1 or self.limit < 1:
            raise ValueError(f"codes and limit must be >= 1, got {self.codes} and {self.limit}")
        if self.last_codes < 0:
            raise ValueError(f"last_codes must be >= 0, got {self.last_codes}")

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

    codes: int = 26
    last_codes: int = 2600

    def __post_init__(self) -> None:
        if self.codes < 1 or self.last_codes < 1:
            raise ValueError(f"codes and last_codes must be >= 1, got {self.codes} and {self.last_codes}")

    def exact_codes(self, last: bool) -> int | None:
        """No fixed number: the model may end a span earlier."""
        return None

    def max_codes(self, last: bool) -> int:
        """``codes``, or ``last_codes`` for the last span."""
        return self.last_codes if last else self.codes
