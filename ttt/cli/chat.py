"""``ttt chat``: a conversation with a trained model in a terminal, or with lines from a pipe."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ttt.api import Model, open_codec, open_model
from ttt.chat.screen import Read, Screen, first_word, piped, terminal, visible
from ttt.cli.opening import open_config
from ttt.config.load import resolved_yaml, to_plain
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, DataError, TttError, suggest
from ttt.interfaces import LanguageModel
from ttt.io.atomic import write_text
from ttt.registry import name_of

if TYPE_CHECKING:
    from ttt.chat.conversation import AnswerReader, Piece
    from ttt.interfaces import Codec
    from ttt.sampling.decoder.decoder import Decoder
    from ttt.types import Span, Turn

LEAVE = ("quit", "exit", "q")


def chat(arguments: argparse.Namespace) -> int:
    """Talk to ``arguments.run`` until the input ends."""
    config, folder = open_config(arguments)
    if arguments.dry_run:
        print(resolved_yaml(config), end="")
        print(f"plan:\n  1. load {folder}\n  2. answer the lines of standard input")
        return 0
    if arguments.play and shutil.which((shlex.split(arguments.play) or [""])[0]) is None:
        raise ConfigError(f"--play: no program {arguments.play!r}; name one that takes a wav file, e.g. 'aplay -q'")
    out = Path(arguments.out) if arguments.out else None
    if out is not None and next(out.glob("turn-*"), None) is not None:
        raise DataError(f"{out}: holds the answers of another chat; name another folder with --out")
    screen = Screen(sys.stdout)
    model = open_model(config, folder, LanguageModel, instead="use 'ttt continue'")
    codec = None
    try:
        codec = open_codec(config, model.tokenizer)
    except TttError as error:
        if out is not None or arguments.play:
            raise
        screen.note(f"no sound: {error}")
    with tempfile.TemporaryDirectory(prefix="ttt-chat-") as scratch:
        folder_out = out or (Path(scratch) if arguments.play else None)
        session = Chat(config, model, folder, codec, screen, folder_out, arguments.room)
        session.kept, session.player, session.single = out is not None, arguments.play, arguments.single
        system = arguments.system or (session.system_of(arguments.task) if arguments.task else "")
        session.talk.system = session.allowed_system(system)
        session.greet()
        return session.run(terminal() if sys.stdin.isatty() else piped(screen))


class Chat:
    """One conversation: history, settings, and what the commands do."""

    def __init__(
        self,
        config: RunConfig,
        model: LanguageModel,
        folder: Path,
        codec: Codec | None,
        screen: Screen,
        out: Path | None,
        room: int = 0,
    ) -> None:
        from ttt.chat.conversation import Conversation

        self.model, self.folder, self.codec, self.screen, self.out = model, folder, codec, screen, out
        self.kept, self.player, self.single = True, "", False
        self.talk = Conversation(model.tokenizer, room_of(model, room))
        self.config, self.decoder = config, self._decoder(config)
        self._written: set[Path] = set()
        self._warned = False

    def _decoder(self, config: RunConfig) -> Decoder:
        return Model(config, self.model).decoder()

    def greet(self) -> None:
        """What is being talked to, and how to begin."""
        names = [name_of(c) for c in (self.config.objective, self.config.eval.sampler)]
        sound = self.codec.codec_id if self.codec is not None else "none"
        self.screen.note(
            f"{self.folder}: objective {names[0]}, sampler {names[1]}, room for {self.talk.room} tokens, codec {sound}"
        )
        systems = {t.label: self.system_of(t.label) for t in self.config.tasks}
        if self.talk.system:
            self.screen.note(f"system message: {self.talk.system!r}")
        elif systems:
            said = ", ".join(f"{label} ({system!r})" for label, system in systems.items())
            self.screen.note(f"no system message; /task NAME sets the one of a task of this run: {said}")
        self.screen.note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")

    def run(self, read: Read) -> int:
        """Until the input ends, 'quit', or Ctrl-C at the prompt."""
        while True:
            try:
                line = read()
            except KeyboardInterrupt:
                self.screen.line()
                return 0
            if line is None or line.strip().lower() in LEAVE:
                return 0
            try:
                self.take(line.strip())
            except (TttError, OSError) as error:
                self.screen.note(f"chat: {error}")
            except KeyboardInterrupt:  # answers catch it themselves
                self.screen.note("stopped")

    def take(self, line: str) -> None:
        """One line: a command, or something said (``//`` says a line that begins with a slash)."""
        from ttt.types import Span, Turn

        if not line:
            return
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line[1:].partition(" ")
            if name not in COMMANDS:
                raise ConfigError(f"no command /{name}.{suggest(name, COMMANDS)} /help lists them")
            COMMANDS[name][0](self, rest.strip())
            return
        self.ask(Turn("user", (Span("text", line[1:] if line.startswith("//") else line),)))

    # --------------------------------------------------------------------------------------------- answering

    def ask(self, question: Turn) -> None:
        """Put a question, show the answer as it settles, keep both."""
        if self.single:
            self.talk.turns = []
        from ttt.chat.conversation import AnswerReader, stream_answer

        fit = self.talk.ask(question, self.config.eval.max_tokens)
        self._tell_room(fit.left_out, len(fit.prompt.ids))
        reader = AnswerReader(self.model.tokenizer)
        why: list[str] = []
        first: dict[str, float] = {}
        started = time.perf_counter()
        pieces = stream_answer(self.decoder, fit.prompt, reader, why)
        try:
            self.screen.write("model> ")
            self._show_pieces(pieces, started, first)
        except KeyboardInterrupt:  # the rest of the answer is dropped, what is settled stays
            pieces.close()
            why.append("stopped")
            self._show_pieces(reader.finish(), started, first)
        except TttError:
            self.talk.take_back()
            self.screen.line()
            raise
        self.screen.line()
        seconds = time.perf_counter() - started
        if not reader.ids:
            self.talk.take_back()
            self.screen.note("stopped before anything was said; the question is taken back")
            return
        spans = self.talk.answer(reader.ids)
        self._sum_up(reader, spans, seconds, first, why[-1] if why else "")

    def _show_pieces(self, pieces: Iterator[Piece], started: float, first: dict[str, float]) -> None:
        spoken = False
        for piece in pieces:
            first.setdefault(piece.kind, time.perf_counter() - started)
            if piece.kind == "text":
                if spoken and not piece.text[0].isspace():
                    self.screen.gap()
                self.screen.write(visible(piece.text))
                spoken = False
            else:
                over = spoken = piece.kind == "span"
                self.screen.counter(f"[{self._length(piece.count)}{']' * over}", final=over)

    def _length(self, codes: int) -> str:
        frames = codes // self.model.tokenizer.vocab.num_codebooks
        long = f", {frames / self.codec.frame_rate_hz:.2f} s" if self.codec is not None else ""
        return f"{codes} code{'s' * (codes != 1)}{long}"

    def _tell_room(self, left_out: int, tokens: int) -> None:
        if left_out:
            self.screen.note(f"the oldest {left_out} turns no longer fit into {self.talk.room} tokens and are left out")
        if tokens > self.config.data.row_tokens and not self._warned:
            self._warned = True
            self.screen.note(
                f"the history ({tokens} tokens) is longer than any row of the training ({self.config.data.row_tokens})"
            )

    def _sum_up(
        self, reader: AnswerReader, spans: tuple[Span, ...], seconds: float, first: dict[str, float], why: str
    ) -> None:
        import numpy as np

        v = self.model.tokenizer.vocab
        codes = np.concatenate(
            [s.codes for s in spans if s.codes is not None] or [np.zeros((0, v.num_codebooks), np.int32)]
        )
        calls = {k: n for k, n in self.decoder.calls.items() if n}
        parts = [
            f"{sum(1 for i in reader.ids if not v.is_audio(i))} text tokens", *([self._length(codes.size)] if codes.size else []),
            " + ".join(f"{n} {k}" for k, n in calls.items()) + " calls", f"{seconds:.2f} s",
        ]  # fmt: skip
        if "codes" in first:
            parts.append(f"first codes after {first['codes']:.2f} s")
        if why in ("stopped", "length"):
            parts.append("stopped" if why == "stopped" else f"cut at max_tokens = {self.config.eval.max_tokens}")
        wav = None
        if self.out is not None:
            record = {
                "text": "".join(s.text for s in spans if s.kind == "text"), "codes": codes.tolist(), "num_codes": v.num_codes,
                "codec": self.codec.codec_id if self.codec is not None else None,
                "frame_rate_hz": self.codec.frame_rate_hz if self.codec is not None else None,
                "duration_s": len(codes) / self.codec.frame_rate_hz if self.codec is not None else None,
                "calls": calls, "seconds": seconds, "stopped": why,
            }  # fmt: skip
            wav = self._write(record, codes)
            if self.kept:
                parts.append(f"-> {wav or self.out / f'turn-{self.talk.asked:03d}.json'}")
        self.screen.note(f"       ({'; '.join(parts)})")
        if wav is not None and self.player:
            self._play(wav)

    def _write(self, record: dict, codes) -> Path | None:
        from ttt.audio.tokens import token_record
        from ttt.audio.wav import write
        from ttt.types import AudioCodes

        assert self.out is not None
        stem = self.out / f"turn-{self.talk.asked:03d}"
        wav = None
        if len(codes) and self.codec is not None:
            (wave,) = self.codec.decode([AudioCodes(codes, self.codec.frame_rate_hz, self.codec.codec_id)])
            wav = stem.with_suffix(".wav")
            write(wav, wave)
        self.out.mkdir(parents=True, exist_ok=True)
        if len(codes):  # for other programs; rates and sizes are the vocabulary's and the codec's
            v = self.model.tokenizer.vocab
            told = (self.codec.frame_rate_hz, self.codec.codec_id) if self.codec is not None else (v.frame_rate_hz, v.codec)
            write_text(stem.with_suffix(".tokens.json"), json.dumps(token_record(codes, v.num_codes, *told)) + "\n")
        write_text(stem.with_suffix(".json"), json.dumps(record, ensure_ascii=False) + "\n")
        return wav

    def _play(self, wav: Path) -> None:
        try:
            done = subprocess.run([*shlex.split(self.player), str(wav)], capture_output=True, text=True)
        except KeyboardInterrupt:
            self.screen.line()
            return
        if done.returncode:
            self.screen.note(f"chat: {self.player!r} failed: {(done.stderr or done.stdout).strip()[:200]}")

    # ---------------------------------------------------------------------------------------------- commands

    def system_of(self, task: str) -> str:
        """The system message that a task of the run was trained with."""
        systems = {t.label: getattr(t, "system", "") for t in self.config.tasks}
        if task not in systems:
            raise ConfigError(
                f"no task {task!r} in this run.{suggest(task, systems)} Tasks: {', '.join(systems) or 'none'}"
            )
        return systems[task]

    def allowed_system(self, text: str) -> str:
        """``text``; raises `ConfigError` where the model's template has no place for it."""
        frames = self.model.tokenizer.template.frames
        if text and frames is not None and "system" not in frames:
            raise ConfigError(f"this model's template has no place for a system message ({text!r})")
        return text

    def set_task(self, name: str) -> None:
        """/task NAME"""
        self.talk.system = self.allowed_system(self.system_of(name))
        self.screen.note(f"system message: {self.talk.system!r}")

    def set_system(self, text: str) -> None:
        """/system TEXT"""
        self.model.tokenizer.refuse_specials(text, "/system")
        self.talk.system = self.allowed_system(text)
        self.screen.note(f"system message: {text!r}")

    def speak(self, rest: str) -> None:
        """/audio FILE [TEXT]"""
        from ttt.audio.signal import resample
        from ttt.audio.wav import read
        from ttt.types import Span, Turn

        if self.codec is None:
            raise ConfigError("/audio: this run has no codec to encode speech with; give codec= or --config")
        path, said = first_word(rest)
        if not path:
            raise ConfigError("/audio: which file? /audio question.wav, or with words after it")
        (codes,) = self.codec.encode([resample(read(path, mono=True), self.codec.rate_hz)])
        self.screen.note(f"       ({path}: {self._length(codes.ids.size)})")
        heard = Span("audio", codes=codes.ids, style="user")
        self.ask(Turn("user", (heard, Span("text", said)) if said else (heard,)))

    def set(self, text: str) -> None:
        """/set KEY VALUE"""
        from ttt.chat.settings import changed

        new = changed(self.config, text)
        decoder = self._decoder(new)  # may refuse: then nothing has changed
        self.config, self.decoder = new, decoder
        self.screen.note(f"set {text}")

    def show(self, rest: str = "") -> None:
        """/show"""
        from ttt.chat.settings import shown

        self.screen.line(shown(self.config))
        self.screen.line(f"system {self.talk.system!r}; {len(self.talk.turns)} turns, {self.talk.tokens()} tokens of "
                         f"{self.talk.room}")  # fmt: skip

    def reset(self, rest: str = "") -> None:
        """/reset"""
        self.talk.turns = []
        self.screen.note("the history is empty; settings and system message stay")

    def undo(self, rest: str = "") -> None:
        """/undo"""
        question = self.talk.take_back()
        self.screen.note(
            "nothing to take back" if question is None else "the last question and its answer are taken back"
        )

    def again(self, rest: str = "") -> None:
        """/again"""
        before = list(self.talk.turns)
        question = self.talk.take_back()
        if question is None:
            raise ConfigError("/again: nothing was asked yet")
        try:
            self.ask(question)
        except TttError:  # the first answer stays
            self.talk.turns = before
            raise

    def save(self, rest: str) -> None:
        """/save FILE"""
        import dataclasses

        from ttt.data.read.examples import write_examples
        from ttt.eval.inputs import settings_of

        if not rest:
            raise ConfigError("/save: where to? /save talk.jsonl")
        path = Path(rest)
        if path.suffix != ".jsonl":
            raise ConfigError(f"/save: {path} is written as examples; give it the ending .jsonl")
        if path.exists() and path.resolve() not in self._written:
            raise DataError(f"{path}: is there already; name another file")
        if not self.talk.turns:
            raise DataError("/save: nothing was said yet")
        meta = {"checkpoint": str(self.folder), "settings": to_plain(settings_of(self.config))}
        write_examples(path, [dataclasses.replace(self.talk.example(), meta=meta)])
        self._written.add(path.resolve())
        self.screen.note(f"saved {len(self.talk.turns)} turns to {path}")

    def help(self, rest: str = "") -> None:
        """/help"""
        width = max(len(usage) for _, usage, _ in COMMANDS.values())
        for _, usage, says in COMMANDS.values():
            self.screen.line(f"  {usage:{width}}  {says}")
        self.screen.line(f"  {', '.join(LEAVE):{width}}  leave, as do Ctrl-D and Ctrl-C at the prompt")


COMMANDS: dict[str, tuple[Callable[[Chat, str], None], str, str]] = {
    "audio": (Chat.speak, "/audio FILE.wav [TEXT]", "say a recording (and some words after it)"),
    "set": (Chat.set, "/set KEY VALUE", "temperature 0.7 | sampler threshold | sampler.block_length 8 | seed 2 | ..."),
    "show": (Chat.show, "/show", "settings, system message, size of the history"),
    "task": (Chat.set_task, "/task NAME", "the system message of one of the run's tasks"),
    "system": (Chat.set_system, "/system TEXT", "another system message (none: /system)"),
    "again": (Chat.again, "/again", "answer the last question once more, with other draws"),
    "undo": (Chat.undo, "/undo", "take the last question and its answer back"),
    "reset": (Chat.reset, "/reset", "forget all turns"),
    "save": (Chat.save, "/save FILE.jsonl", "the conversation as an example file"),
    "help": (Chat.help, "/help", "this list"),
}


def room_of(model: LanguageModel, asked: int = 0) -> int:
    """Most tokens of history and answer: the backbone's positions, or ``asked`` if that is fewer (0: not asked).

    Raises `ConfigError` for more than there are, and for a backbone that does not say.
    """
    found = model.max_positions
    if asked < 0 or found and asked > found:
        raise ConfigError(f"--room: must lie in 1 to {found} (positions of the model), got {asked}")
    if not (asked or found):
        raise ConfigError("the model does not say how many positions it has; give --room TOKENS")
    return asked or found
