"""The command line ``ttt VERB ...``: finds the module of the verb, reads its arguments, runs it.

A verb is one file, ``ttt/cli/VERB.py``:

- its docstring is its help; the first line stands in ``ttt --help``;
- ``add_arguments(parser)`` declares its arguments (`ttt.cli.common` adds those that verbs share);
- ``run(arguments)`` does the work and returns the exit code.

A group of verbs (``ttt data convert``) is a package, ``ttt/cli/GROUP/__init__.py``, with ``VERBS``, the names of its verbs; each
is a file of that package.  Verb modules import nothing heavy (torch, transformers, omegaconf, numpy) at module level, as
``ttt --help`` imports them all.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import ttt
from ttt.errors import TttError, suggest

ABOUT = "Speech-text language models: autoregressive text and diffusion audio in one Transformer."
SETTINGS = """Most verbs read recipes (--config FILE.yaml) and settings over them (section.key=value, such as train.lr=1e-4);
'ttt config --explain' describes every key."""
HEADINGS = {
    "Data: from recordings to training examples": (
        "data", "fit", "tokenizer", "tokenize", "examples", "floor",
    ),
    "Run: train a model and measure it": ("estimate", "train", "generate", "score", "report", "model"),
    "Ask: use a trained model": ("chat", "stream", "continue", "vocode"),
    "Study: look inside, compare, reproduce": (
        "show", "replay", "inspect", "doctor", "likelihood", "eval", "ablate", "repro", "bench",
    ),
    "Extend: configuration and plug-ins": ("list", "config", "check", "new"),
}  # fmt: skip
VERBS = tuple(name for names in HEADINGS.values() for name in names)
# Former name -> the verb it is now.  It works, says so, and is not listed.
ALIASES = {name: ("fit", name) for name in ("codec", "judge", "speaker")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.  Exit codes: 0 done, 2 something the user can fix (one line on stderr), 1 a fault of the program."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--version"]:
        print(f"ttt {ttt.__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0 if words else 2
    words = current_name(words)
    path, names = ["ttt"], VERBS
    while True:  # one turn per level: verb, or group and verb
        title = " ".join(path)
        if words[:1] in (["-h"], ["--help"]):
            print(group_help(title, module_of(path), names))
            return 0
        if not words or words[0] not in names:
            wrong = f"no verb {words[0]!r}.{suggest(words[0], names)}" if words else "name a verb."
            print(f"{title}: {wrong} There are: {', '.join(names)}", file=sys.stderr)
            return 2
        path.append(words.pop(0))
        verb = module_of(path)
        if not hasattr(verb, "VERBS"):
            break
        names = verb.VERBS
    arguments = parse(parser_of(path, verb), words)
    logging.basicConfig(
        level=os.environ.get("TTT_LOG", "INFO").upper(),
        stream=sys.stderr,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    title = " ".join(path)
    try:
        return verb.run(arguments)
    except TttError as error:
        if not getattr(error, "quiet", False):  # another rank of the same run prints it
            print(f"{title}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{title}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def current_name(words: Sequence[str]) -> list[str]:
    """``words`` with a former name of a verb replaced; says so on stderr."""
    if words[0] not in ALIASES:
        return list(words)
    new = ALIASES[words[0]]
    print(f"ttt {words[0]}: is now 'ttt {' '.join(new)}'", file=sys.stderr)
    return [*new, *words[1:]]


def module_of(path: Sequence[str]) -> Any:
    """The module of ``["ttt", verb]`` or ``["ttt", group, verb]``; ``["ttt"]`` is the package of all verbs.

    >>> module_of(["ttt", "continue"]).__name__
    'ttt.cli.continue_'
    """
    parts = [name.replace("-", "_") + "_" * keyword.iskeyword(name) for name in path[1:]]
    return importlib.import_module(".".join(["ttt.cli", *parts]))


def parser_of(path: Sequence[str], verb: ModuleType) -> argparse.ArgumentParser:
    """The argument parser of one verb."""
    parser = argparse.ArgumentParser(
        prog=" ".join(path),
        description=plain(verb).replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_arguments(parser)
    return parser


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a verb.

    argparse takes positional arguments in one run only; settings (``section.key=value``) may stand anywhere.
    """
    arguments, rest = parser.parse_known_args(words)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(arguments, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def plain(module: ModuleType) -> str:
    """A module's docstring without its quoting of code."""
    return (module.__doc__ or "").strip().replace("``", "")


def help_line(path: Sequence[str]) -> str:
    """First line of a verb's docstring; for a group also the names of its verbs."""
    module = module_of(path)
    line = plain(module).partition("\n")[0].rstrip(".")
    return f"{line}: {', '.join(module.VERBS)}" if hasattr(module, "VERBS") else line


def overview() -> str:
    """What ``ttt --help`` prints."""
    lines = ["usage: ttt VERB [arguments]", "       ttt VERB --help | --version", "", ABOUT]
    for heading, names in HEADINGS.items():
        lines += ["", heading, *(f"  {name:12}{help_line(['ttt', name])}" for name in names)]
    return "\n".join([*lines, "", SETTINGS])


def group_help(title: str, group: ModuleType, names: Sequence[str]) -> str:
    """What ``ttt GROUP --help`` prints."""
    path = title.split()
    lines = [f"usage: {title} VERB [arguments]", "", plain(group), ""]
    return "\n".join([*lines, *(f"  {name:12}{help_line([*path, name])}" for name in names)])


if __name__ == "__main__":
    sys.exit(main())
