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
import contextlib
import importlib
import keyword
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import ttt
from ttt.errors import TttError, suggest
from ttt.io.outputs import withdraw_claims
from ttt.io.system_errors import describe, is_disk_full, is_link_loop
from ttt.io.terminal import STDOUT, VisibleFormatter, guarded_stdout, visible
from ttt.io.threads import sleep_while_waiting

log = logging.getLogger(__name__)

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
    sleep_while_waiting()
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
    start_log()
    with guarded_stdout():
        return guarded_run(" ".join(path), verb, arguments)


def start_log() -> None:
    """Log to stderr, at the level of ``TTT_LOG`` (a name such as DEBUG; default INFO)."""
    if logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    level = os.environ.get("TTT_LOG", "INFO").upper()
    known = logging.getLevelName(level)
    logging.basicConfig(level=known if isinstance(known, int) else logging.INFO, handlers=[handler])
    if not isinstance(known, int):
        log.warning("TTT_LOG: no level %r; INFO is used (DEBUG, INFO, WARNING, ERROR)", level)


def guarded_run(title: str, verb: Any, arguments: argparse.Namespace) -> int:
    """The exit code of a verb.  Whatever a user can mend is one line on stderr, and exit code 2."""
    try:
        with allowed_code(arguments):
            code = verb.run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except TttError as error:
        if not getattr(error, "quiet", False):  # another rank of the same run prints it
            complain(title, str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain(title, "interrupted")
        return 130
    except BrokenPipeError:
        drop_stdout()
        return 0
    except SystemExit as stop:  # no verb of ours does this
        complain(title, f"{place_of(stop)}called sys.exit({stop.code!r}); a plug-in raises an error instead")
        return TttError.exit_code
    except OSError as error:
        log.debug("", exc_info=error)
        if error.filename == STDOUT:
            drop_stdout()
        complain(title, describe(error))
        return TttError.exit_code
    except MemoryError as error:
        log.debug("", exc_info=error)
        complain(title, f"no memory left{f' ({error})' if str(error) else ''}; use smaller batches or shorter rows")
        return TttError.exit_code
    except Exception as error:
        if not (is_disk_full(error) or is_link_loop(error)):
            raise
        log.debug("", exc_info=error)
        complain(title, str(error))
        return TttError.exit_code
    finally:
        withdraw_claims()


def allowed_code(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """With ``--trust``, code that the files of others name may be run."""
    if not getattr(arguments, "trust", False):
        return contextlib.nullcontext()
    from ttt.registry.trust import trusting

    return trusting()


def complain(title: str, message: str) -> None:
    """One line on stderr."""
    print(visible(f"{title}: {' '.join(message.splitlines())}"), file=sys.stderr)


def drop_stdout() -> None:
    """Let nothing be written to standard output any more: Python would try again at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # no file behind it
        sys.stdout = None  # type: ignore[assignment]


def place_of(stop: BaseException) -> str:
    """``FILE:LINE `` of the code that raised."""
    frames = traceback.extract_tb(stop.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno} " if frames else ""


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
