"""Errors a user can mend.

Each message is one line: the place, what was found, what to do.  The command line prints it and exits with
``exit_code``; anything that is not a `TttError` is a fault of the program and shows its traceback (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TttError(Exception):
    """Base of every error that a user can mend."""

    exit_code = 2


class ConfigError(TttError):
    """A configuration key, value or combination that cannot run."""


class FieldValueError(ConfigError, ValueError):
    """A value that a field of a plug-in or of settings does not accept; `ValueError` for those who write Python."""


class UntrustedCodeError(ConfigError):
    """Code that somebody else's file names and that the user has not asked for."""


class DataError(TttError):
    """A file, record, wav, token or code that is not what it has to be."""


class CheckpointError(TttError):
    """A checkpoint that is incomplete, damaged or of another model."""


class RegistryError(TttError):
    """A plug-in that cannot be registered, found or imported."""


class UnknownNameError(RegistryError):
    """A name nobody registered."""


class DuplicateNameError(RegistryError):
    """A name with two owners."""


class MissingExtraError(TttError):
    """An optional package that the requested feature needs."""


def suggest(wrong: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest known spelling, or nothing.

    >>> suggest("polynomal", ["linear", "polynomial"])
    " Did you mean 'polynomial'?"
    >>> suggest("zzz", ["linear"])
    ''
    """
    near = difflib.get_close_matches(str(wrong), list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
