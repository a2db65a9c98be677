"""One chat: lines come in, answers go out as they settle, commands change how answers are decoded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ttt.api import Model
from ttt.chat.commands import COMMANDS, LEAVE
from ttt.chat.conversation import AnswerReader, Conversation, Piece, stream_answer
from ttt.chat.player import LivePlayer, is_pipe, play_file
from ttt.chat.screen import Read, Screen
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, TttError, suggest
from ttt.interfaces import Codec, LanguageModel
from ttt.io.atomic import write_text
from ttt.registry.core import name_of
from ttt.sampling.decoder.decoder import Decoder, spans_of
from ttt.types import AudioCodes, Span, Turn, written_text


@dataclass(frozen=True)
class Output:
    """Where answers go besides the screen.  ``folder``: files of each answer, if any; ``is_kept``: they stay after the chat;
    ``player``: a command that gets the sound of each spoken answer (`ttt.chat.player`)."""

    folder: Path | None = None
    is_kept: bool = True
    player: str = ""


@dataclass
class Timer:
    """Seconds since an answer began, and when the first piece of each kind came."""

    started: float = field(default_factory=time.perf_counter)
    first: dict[str, float] = field(default_factory=dict)

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started


class Chat:
    """A conversation with a model: history, settings, and the screen it is shown on.

    ``place``: the model's folder, for greetings and saved files; ``room``: most tokens of history and answer (0: all positions
    of the model); ``single``: every question is asked by itself; ``raw``: no template (`Conversation`).
    """

    def __init__(
        self, config: RunConfig, model: LanguageModel, place: Path, codec: Codec | None, screen: Screen,
        output: Output | None = None, room: int = 0, single: bool = False, raw: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.place, self.codec, self.screen = model, place, codec, screen
        self.output = output or Output()
        self.single = single
        self.talk = Conversation(model.tokenizer, room_of(model, room), raw=raw)
        self.config, self.decoder = config, self.decoder_of(config)
        self.saved: set[Path] = set()  # files that /save wrote, which it may write again
        self._warned_of_length = False

    def decoder_of(self, config: RunConfig) -> Decoder:
        """A decoder of the chat's model.  Raises `ConfigError` for settings that the model cannot be decoded with."""
        return Model(config, self.model).decoder()

    def change_settings(self, config: RunConfig) -> None:
        """Decode the next answers in another way; when that is refused, nothing changes."""
        self.decoder = self.decoder_of(config)
        self.config = config

    def systems(self) -> dict[str, str]:
        """Task label -> the system message that the run's task was trained with."""
        return {t.label: getattr(t, "system", "") for t in self.config.tasks}

    def system_of(self, task: str) -> str:
        """The system message of one task.  Raises `ConfigError` for a task that the run does not have."""
        systems = self.systems()
        if task not in systems:
            raise ConfigError(
                f"no task {task!r} in this run.{suggest(task, systems)} Tasks: {', '.join(systems) or 'none'}"
            )
        return systems[task]

    def set_system(self, text: str) -> None:
        """Use another system message.  Raises `ConfigError` where the model's template has no place for one."""
        frames = self.model.tokenizer.template.frames
        if text and self.talk.raw:
            raise ConfigError(f"a running text (--raw) has no place for a system message ({text!r})")
        if text and frames is not None and "system" not in frames:
            raise ConfigError(f"this model's template has no place for a system message ({text!r})")
        self.talk.system = text

    def greet(self) -> None:
        """Say what is being talked to, and how to begin."""
        sound = self.codec.codec_id if self.codec is not None else "none"
        self.screen.note(
            f"{self.place}: objective {name_of(self.config.objective)}, sampler {name_of(self.config.eval.sampler)}, room for "
            f"{self.talk.room} tokens, codec {sound}"
        )
        systems = self.systems()
        if self.talk.system:
            self.screen.note(f"system message: {self.talk.system!r}")
        elif systems:
            listed = ", ".join(f"{label} ({system!r})" for label, system in systems.items())
            self.screen.note(f"no system message; /task NAME sets the one of a task of this run: {listed}")
        self.screen.note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")

    def run(self, read: Read) -> int:
        """Take lines until the input ends, 'quit', or Ctrl-C at the prompt; -> exit code."""
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
            except KeyboardInterrupt:  # of a command; answers catch it themselves
                self.screen.note("stopped")

    def take(self, line: str) -> None:
        """One line: a command, or a question (``//`` asks one that begins with a slash)."""
        if not line:
            return
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line[1:].partition(" ")
            if name not in COMMANDS:
                raise ConfigError(f"no command /{name}.{suggest(name, COMMANDS)} /help lists them")
            COMMANDS[name].function(self, rest.strip())
            return
        self.ask(Turn("user", (Span("text", line[1:] if line.startswith("//") else line),)))

    def ask(self, question: Turn) -> None:
        """Put a question, show the answer as it settles, keep both."""
        if self.single:
            self.talk.turns = []
        fit = self.talk.ask(question, self.config.eval.max_tokens)
        self._warn_of_length(fit.left_out, len(fit.prompt.ids))
        reader = AnswerReader(self.model.tokenizer)
        reasons: list[str] = []
        timer = Timer()
        pieces = stream_answer(self.decoder, fit.prompt, reader, reasons)
        live = None
        if self.codec is not None and self.output.player and is_pipe(self.output.player):
            live = LivePlayer(self.output.player, self.codec)
        try:
            self.screen.write("model> ")
            self._show(pieces, timer, reader, live)
        except KeyboardInterrupt:  # the rest of the answer is dropped, what is settled stays
            pieces.close()
            if live is not None:
                live.stop()
                live = None
            reasons.append("stopped")
            self._show(reader.finish(), timer, reader, None)
        except TttError:
            if live is not None:
                live.stop()
            self.talk.take_back()
            self.screen.line()
            raise
        self.screen.line()
        seconds = timer.seconds()
        if not reader.ids:
            self.talk.take_back()
            self.screen.note("stopped before anything was said; the question is taken back")
            return
        if live is not None:
            self._played(lambda: live.finish(self._codes(reader)))
        spans = self.talk.answer(reader.ids)
        self._sum_up(reader, spans, seconds, timer.first, reasons[-1] if reasons else "")

    def length(self, codes: int) -> str:
        """A number of codes in words, with its duration where there is a codec."""
        frames = codes // self.model.tokenizer.vocab.num_codebooks
        duration = f", {frames / self.codec.code_rate_hz:.2f} s" if self.codec is not None and self.codec.code_rate_hz else ""
        return f"{codes} code{'s' * (codes != 1)}{duration}"

    def _codes(self, reader: AnswerReader) -> np.ndarray:
        """Codes i32 [F, Q] of the answer so far."""
        spoken = [s.codes for s in spans_of(reader.ids, self.model.tokenizer) if s.codes is not None]
        return np.concatenate(spoken or [np.zeros((0, self.model.tokenizer.vocab.num_codebooks), np.int32)])

    def _show(self, pieces: Iterator[Piece], timer: Timer, reader: AnswerReader, live: LivePlayer | None) -> None:
        after_speech = False
        for piece in pieces:
            timer.first.setdefault(piece.kind, timer.seconds())
            if piece.kind == "text":
                if after_speech and not piece.text[0].isspace():
                    self.screen.gap()
                self.screen.write(piece.text)
                after_speech = False
            else:
                after_speech = is_over = piece.kind == "span"
                self.screen.counter(f"[{self.length(piece.count)}{']' * is_over}", final=is_over)
                if live is not None:
                    live.push(self._codes(reader))

    def _warn_of_length(self, left_out: int, tokens: int) -> None:
        if left_out:
            self.screen.note(f"the oldest {left_out} turns no longer fit into {self.talk.room} tokens and are left out")
        row_tokens = self.config.data.row_tokens
        if tokens > row_tokens and not self._warned_of_length:
            self._warned_of_length = True
            self.screen.note(f"the history ({tokens} tokens) is longer than any row of the training ({row_tokens})")

    def _sum_up(
        self, reader: AnswerReader, spans: tuple[Span, ...], seconds: float, first: dict[str, float], reason: str
    ) -> None:
        """Write the answer's files, print one line about it, play it."""
        v = self.model.tokenizer.vocab
        spoken = [s.codes for s in spans if s.codes is not None]
        codes = np.concatenate(spoken or [np.zeros((0, v.num_codebooks), np.int32)])  # [F, Q]
        calls = {k: n for k, n in self.decoder.calls.items() if n}
        parts = [
            f"{sum(1 for i in reader.ids if not v.is_audio(i))} text tokens", *([self.length(codes.size)] if codes.size else []),
            " + ".join(f"{n} {k}" for k, n in calls.items()) + " calls", f"{seconds:.2f} s",
        ]  # fmt: skip
        if "codes" in first:
            parts.append(f"first codes after {first['codes']:.2f} s")
        if reason in ("stopped", "length"):
            parts.append("stopped" if reason == "stopped" else self._limit())
        wav = None
        if self.output.folder is not None:
            stem = self.output.folder / f"turn-{self.talk.asked:03d}"
            rate_hz = self.codec.code_rate_hz or None if self.codec is not None else None
            wav = self._write(stem, codes, {
                "text": written_text(spans), "codes": codes.tolist(), "num_codes": v.num_codes,
                "codec": self.codec.codec_id if self.codec is not None else None, "frame_rate_hz": rate_hz,
                "duration_s": self.codec.duration_s(codes) if self.codec is not None else None, "calls": calls,
                "seconds": seconds, "stopped": reason,
            })  # fmt: skip
            if self.output.is_kept:
                parts.append(f"-> {wav or stem.with_suffix('.json')}")
        self.screen.note(f"       ({'; '.join(parts)})")
        if wav is not None and self.output.player and not is_pipe(self.output.player):
            self._played(lambda: play_file(self.output.player, wav))

    def _played(self, play: Callable[[], str]) -> None:
        try:
            failure = play()
        except KeyboardInterrupt:
            self.screen.line()
            return
        if failure:
            self.screen.note(f"chat: {self.output.player!r} failed: {failure}")

    def _write(self, stem: Path, codes: np.ndarray, record: dict[str, Any]) -> Path | None:
        """``STEM.json``; of spoken answers also ``STEM.tokens.json`` and, with a codec, ``STEM.wav``, whose path is returned."""
        from ttt.audio.tokens import token_record
        from ttt.audio.wav import write

        wav = None
        if len(codes) and self.codec is not None:
            (wave,) = self.codec.decode([AudioCodes(codes, self.codec.frame_rate_hz, self.codec.codec_id)])
            wav = stem.with_suffix(".wav")
            write(wav, wave)
        if len(codes):  # for other programs; rates and sizes are the codec's, else the vocabulary's
            v = self.model.tokenizer.vocab
            about = (v.frame_rate_hz, v.codec) if self.codec is None else (self.codec.code_rate_hz, self.codec.codec_id)
            tokens = token_record(codes, v.num_codes, *about)
            write_text(stem.with_suffix(".tokens.json"), json.dumps(tokens) + "\n")
        write_text(stem.with_suffix(".json"), json.dumps(record, ensure_ascii=False) + "\n")
        return wav

    def _limit(self) -> str:
        """What ended an answer that did not end by itself."""
        sampler, most = self.config.eval.sampler, self.config.eval.max_tokens
        canvas = most if getattr(sampler, "canvas", "span") == "span" else getattr(sampler, "gen_length", most)
        full = f"the canvas of {canvas} tokens (eval.sampler.gen_length) is full"
        return f"cut at max_tokens = {most}" if canvas >= most else full


def room_of(model: LanguageModel, asked: int = 0) -> int:
    """Most tokens of history and answer: the model's positions, or ``asked`` if that is fewer (0: not asked).

    Raises `ConfigError` for more than there are, and for a model that sets no limit.
    """
    most = model.max_positions
    if asked < 0 or most and asked > most:
        raise ConfigError(f"--room: must lie in 1 to {most} (positions of the model), got {asked}")
    if not (asked or most):
        raise ConfigError("the model does not say how many positions it has; give --room TOKENS")
    return asked or most
