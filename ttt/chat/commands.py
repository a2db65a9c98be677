"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ttt.chat.screen import first_word
from ttt.chat.settings import changed, shown
from ttt.config.load import to_plain
from ttt.errors import ConfigError, DataError, TttError
from ttt.eval.inputs import settings_of
from ttt.types import Span, Turn

if TYPE_CHECKING:
    from ttt.chat.session import Chat

LEAVE = ("quit", "exit", "q")


def say_recording(chat: Chat, rest: str) -> None:
    """/audio FILE [TEXT]"""
    from ttt.audio.signal import resample
    from ttt.audio.wav import read

    if chat.codec is None:
        raise ConfigError("/audio: this run has no codec to encode speech with; give codec= or --config")
    path, words = first_word(rest)
    if not path:
        raise ConfigError("/audio: which file? /audio question.wav, or with words after it")
    (codes,) = chat.codec.encode([resample(read(path, mono=True), chat.codec.encode_rate_hz)])
    chat.screen.note(f"       ({path}: {chat.length(codes.ids.size)})")
    speech = Span("audio", codes=codes.ids, style="user")
    chat.ask(Turn("user", (speech, Span("text", words)) if words else (speech,)))


def set_value(chat: Chat, rest: str) -> None:
    """/set KEY VALUE"""
    chat.change_settings(changed(chat.config, rest))
    chat.screen.note(f"set {rest}")


def show(chat: Chat, rest: str) -> None:
    """/show"""
    chat.screen.line(shown(chat.config))
    talk = chat.talk
    chat.screen.line(f"system {talk.system!r}; {len(talk.turns)} turns, {talk.tokens()} tokens of {talk.room}")


def set_task(chat: Chat, rest: str) -> None:
    """/task NAME"""
    chat.set_system(chat.system_of(rest))
    chat.screen.note(f"system message: {chat.talk.system!r}")


def set_system(chat: Chat, rest: str) -> None:
    """/system TEXT"""
    chat.model.tokenizer.refuse_specials(rest, "/system")
    chat.set_system(rest)
    chat.screen.note(f"system message: {rest!r}")


def ask_again(chat: Chat, rest: str) -> None:
    """/again"""
    before = list(chat.talk.turns)
    question = chat.talk.take_back()
    if question is None:
        raise ConfigError("/again: nothing was asked yet")
    try:
        chat.ask(question)
    except TttError:  # the first answer stays
        chat.talk.turns = before
        raise


def undo(chat: Chat, rest: str) -> None:
    """/undo"""
    is_empty = chat.talk.take_back() is None
    chat.screen.note("nothing to take back" if is_empty else "the last question and its answer are taken back")


def reset(chat: Chat, rest: str) -> None:
    """/reset"""
    chat.talk.turns = []
    chat.screen.note("the history is empty; settings and system message stay")


def save(chat: Chat, rest: str) -> None:
    """/save FILE"""
    from ttt.data.read.examples import write_examples

    if not rest:
        raise ConfigError("/save: where to? /save talk.jsonl")
    path = Path(rest)
    if path.suffix != ".jsonl":
        raise ConfigError(f"/save: {path} is written as examples; give it the ending .jsonl")
    if path.exists() and path.resolve() not in chat.saved:
        raise DataError(f"{path}: is there already; name another file")
    if not chat.talk.turns:
        raise DataError("/save: nothing was said yet")
    meta = {"checkpoint": str(chat.place), "settings": to_plain(settings_of(chat.config))}
    write_examples(path, [dataclasses.replace(chat.talk.example(), meta=meta)])
    chat.saved.add(path.resolve())
    chat.screen.note(f"saved {len(chat.talk.turns)} turns to {path}")


def show_help(chat: Chat, rest: str) -> None:
    """/help"""
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        chat.screen.line(f"  {command.usage:{width}}  {command.help}")
    chat.screen.line(f"  {', '.join(LEAVE):{width}}  leave, as do Ctrl-D and Ctrl-C at the prompt")


class Command(NamedTuple):
    """``function(chat, rest of the line)``; ``usage`` and ``help`` are what /help shows."""

    function: Callable[[Chat, str], None]
    usage: str
    help: str


COMMANDS = {
    "audio": Command(say_recording, "/audio FILE.wav [TEXT]", "say a recording (and some words after it)"),
    "set": Command(set_value, "/set KEY VALUE", "temperature 0.7 | sampler threshold | sampler.block_length 8 | seed 2 | ..."),
    "show": Command(show, "/show", "settings, system message, size of the history"),
    "task": Command(set_task, "/task NAME", "the system message of one of the run's tasks"),
    "system": Command(set_system, "/system TEXT", "another system message (none: /system)"),
    "again": Command(ask_again, "/again", "answer the last question once more, with other draws"),
    "undo": Command(undo, "/undo", "take the last question and its answer back"),
    "reset": Command(reset, "/reset", "forget all turns"),
    "save": Command(save, "/save FILE.jsonl", "the conversation as an example file"),
    "help": Command(show_help, "/help", "this list"),
}
