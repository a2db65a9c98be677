"""Traces: what a decoder did at each network call; recorded, written to a file, read.

A trace file is JSON lines.  The first line says what the file is; each other line is one answer with its steps as columns
of equal length.  Everything needed to show it (spellings, special ids, what the letters mean) is inside.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.errors import DataError
from ttt.io.atomic import write_json_lines
from ttt.io.json_input import parse_json
from ttt.registry import name_of
from ttt.text.delta import AnswerText
from ttt.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.sampling.decoder.decoder import DecodeEvent, Decoder
    from ttt.types import Prompt

FORMAT, VERSION = "ttt-trace", 1
LONGEST = 1 << 17  # positions of an answer that are read: a frame holds every one of them
KINDS = {
    "t": "text, written from left to right",
    "a": "audio, written from left to right",
    "c": "committed by a sampler (again, if the position held a token)",
    "r": "predicted by a sampler and masked again",
    "g": "settled without a prediction of its own (an end token that was forced)",
    "s": "positions before this one are final from now on",
    "x": "the same, and what stood behind them is dropped",
}
COLUMNS = {
    "call": "number of the answer's network call, from 1",
    "kind": "one letter, see kinds",
    "position": "place in the answer, from 0",
    "token": "id; -1 where the kind has none",
    "confidence": "score by which the sampler ranked the token, see confidence; null where there is none",
}


@dataclass(frozen=True)
class TraceRecord:
    """The steps of one answer.  ``call``, ``kind`` (letters of `KINDS`), ``position``, ``token``, ``confidence``: columns.

    ``ids``: the answer; ``pieces``: the text that each of its tokens adds ("" for audio and for unfinished characters);
    ``spelling``: id -> text alone, of every id that is no code; ``calls``: network calls by "ar" and "diffusion";
    ``stopped``: "im_end", "length", or "closed" when the reader left early.
    """

    uid: str
    ids: Sequence[int]
    pieces: Sequence[str]
    spelling: Mapping[int, str]
    calls: Mapping[str, int]
    stopped: str
    call: Sequence[int]
    kind: str
    position: Sequence[int]
    token: Sequence[int]
    confidence: Sequence[float | None]

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in COLUMNS}
        if len(set(lengths.values())) != 1:
            raise DataError(f"trace of {self.uid!r}: columns must share one length, got {lengths}")
        unknown = sorted(set(self.kind) - set(KINDS))
        if unknown:
            raise DataError(f"trace of {self.uid!r}: unknown kind {unknown[0]!r}; kinds: {', '.join(KINDS)}")
        if len(self.pieces) != len(self.ids):
            raise DataError(f"trace of {self.uid!r}: {len(self.ids)} ids but {len(self.pieces)} pieces")

    def to_json(self) -> dict[str, Any]:
        """As plain data, confidences with four digits."""
        return {
            "uid": self.uid, "stopped": self.stopped, "calls": dict(self.calls), "ids": list(self.ids),
            "pieces": list(self.pieces), "spelling": {str(i): s for i, s in self.spelling.items()},
            "call": list(self.call), "kind": self.kind, "position": list(self.position), "token": list(self.token),
            "confidence": [None if c is None else float(f"{c:.4g}") for c in self.confidence],
        }  # fmt: skip

    @classmethod
    def from_json(cls, raw: Any, where: str) -> TraceRecord:
        """What `to_json` gave.  Raises `DataError` naming ``where``."""
        try:
            _check_columns(raw)
            return cls(**{**raw, "spelling": {int(i): s for i, s in raw["spelling"].items()}})
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{where}: not an answer of a trace ({error}); write it again with 'ttt generate --trace'"
            ) from None


def _check_columns(raw: Mapping[str, Any]) -> None:
    """Raise `ValueError` for values that no decoder writes."""
    for name, low, high in (
        ("ids", 0, math.inf), ("call", 0, math.inf), ("position", 0, LONGEST), ("token", -1, math.inf),
    ):  # fmt: skip
        for value in raw[name]:
            if type(value) is not int or not low <= value <= high:
                most = f" and <= {high}" if high < math.inf else ""
                raise ValueError(f"{name}: {value!r} is no whole number >= {low}{most}")
    for value in raw["confidence"]:
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise ValueError(f"confidence: {value!r} is neither a number nor null")
    if not all(isinstance(s, str) for s in (*raw["pieces"], *raw["spelling"].values(), raw["uid"], raw["stopped"])):
        raise ValueError("pieces, spelling, uid and stopped are texts")
    if not all(type(n) is int for n in raw["calls"].values()):
        raise ValueError("calls are whole numbers")


class Tracer:
    """Listens to a decoder: ``tracer.watch(decoder, prompts)`` gives its events and writes down every step.

    Tracing changes no token.  ``records``: what was seen so far, by uid.
    """

    def __init__(self) -> None:
        self.records: dict[str, TraceRecord] = {}

    def watch(self, decoder: Decoder, prompts: Sequence[Prompt], **how: Any) -> Generator[DecodeEvent, None, None]:
        """What ``decoder.events(prompts, **how)`` gives; each answer is recorded before its end is given, or on closing."""
        rows = [_Row(decoder, i) for i in range(len(prompts))]
        try:
            with contextlib.closing(
                decoder.events(prompts, _listener(rows, "c"), _listener(rows, "r"), **how)
            ) as events:
                for event in events:
                    rows[event.row].settle(event)
                    if event.kind == "end":
                        uid = prompts[event.row].uid
                        self.records[uid] = rows[event.row].record(uid)
                    yield event
        finally:
            for prompt, row in zip(prompts, rows, strict=True):
                if not row.is_over:
                    self.records[prompt.uid] = row.record(prompt.uid)


@dataclass
class _Row:
    """One answer while it is decoded."""

    decoder: Decoder
    number: int
    ids: list[int] = field(default_factory=list)
    base: int = 0  # where the sampler's present span begins
    standing: dict[int, int] = field(default_factory=dict)  # position -> id that a sampler wrote and nobody took back
    reach: int = 0  # one past the last position that a sampler wrote in this span
    steps: list[tuple[int, str, int, int, float | None]] = field(default_factory=list)
    stopped: str = "closed"

    @property
    def is_over(self) -> bool:
        """Did the decoder end it?"""
        return self.stopped != "closed"

    def hear(self, kind: str, offsets: Tensor, ids: Tensor, scores: Tensor) -> None:
        """A sampler committed ("c") or took back ("r") tokens."""
        for offset, token, score in zip(offsets.tolist(), ids.tolist(), scores.tolist(), strict=True):
            position = self.base + offset
            self.reach = max(self.reach, position + 1)
            if kind == "c":
                self.standing[position] = token
            else:
                self.standing.pop(position, None)
            self._step(kind, position, token, score if math.isfinite(score) else None)

    def settle(self, event: DecodeEvent) -> None:
        """Something is final."""
        vocab = self.decoder.model.tokenizer.vocab
        if event.kind == "end":
            self.stopped = event.reason
            self._drop(final=True)
        elif event.kind == "text" or self.decoder.sampler.autoregressive:
            self._drop(final=True)
            score = event.scores[0] if event.scores else None
            self._step("t" if event.kind == "text" else "a", len(self.ids), event.ids[0], score)
            self.ids.extend(event.ids)
            self.base = len(self.ids)
        elif event.ids:
            for token in event.ids:
                if self.standing.pop(len(self.ids), None) != token:
                    self._step("g", len(self.ids), token, None)
                self.ids.append(token)
            ends = (vocab.im_end_id,) if self.decoder.sampler.canvas == "answer" else (vocab.eoa_id, vocab.eoa_last_id)
            self._drop(final=event.ids[-1] in ends)
            if self.steps[-1][1] != "x":
                self._step("s", len(self.ids), -1, None)

    def _drop(self, final: bool) -> None:
        if final and self.reach > len(self.ids):
            self._step("x", len(self.ids), -1, None)
        if final:
            self.standing, self.reach = {}, 0

    def _step(self, kind: str, position: int, token: int, confidence: float | None) -> None:
        self.steps.append((sum(self.decoder.calls_of(self.number).values()), kind, position, token, confidence))

    def record(self, uid: str) -> TraceRecord:
        """All of it."""
        tokenizer = self.decoder.model.tokenizer
        call, kind, position, token, confidence = zip(*self.steps, strict=True) if self.steps else ((),) * 5
        return TraceRecord(
            uid=uid, ids=tuple(self.ids), pieces=_pieces(self.ids, tokenizer), spelling=_spelling({*token}, tokenizer),
            calls=self.decoder.calls_of(self.number) if self.steps else {}, stopped=self.stopped,
            call=call, kind="".join(kind), position=position, token=token, confidence=confidence,
        )  # fmt: skip


def _listener(rows: Sequence[_Row], kind: str) -> Any:
    return lambda row, offsets, ids, scores: rows[row].hear(kind, offsets, ids, scores)


def _pieces(ids: Sequence[int], tokenizer: TextTokenizer) -> tuple[str, ...]:
    """The text that each id adds; put together, they are what the tokenizer decodes all text ids to in one go."""
    vocab = tokenizer.vocab
    text = AnswerText(tokenizer, vocab.rules.text_first)
    pieces = [""] * len(ids)
    last = 0  # place of the last text id
    for at, token in enumerate(ids):
        if vocab.is_audio(token) or token in (vocab.soa_id, vocab.soa_last_id):
            pieces[last] += text.at_speech()
        else:
            pieces[at], last = text.push(token), at
    if pieces:
        pieces[last] += text.finish()
    return tuple(pieces)


def _spelling(ids: set[int], tokenizer: TextTokenizer) -> dict[int, str]:
    """Special tokens by name, text as text; codes have none."""
    v = tokenizer.vocab
    return {
        i: tokenizer.decode([i]) or tokenizer.token(i) for i in sorted(ids) if i >= 0 and not v.code_start <= i < v.code_stop
    }  # fmt: skip


# -- files


def header(tokenizer: TextTokenizer, sampler: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The first line of a file: what it is, how to read it, how the answers were made (``settings``)."""
    import ttt

    v = tokenizer.vocab
    rule = getattr(sampler, "remask", None)
    name = name_of(rule if rule is not None else sampler)
    return {
        "format": FORMAT, "version": VERSION, "ttt": ttt.__version__, "kinds": KINDS, "columns": COLUMNS,
        "confidence": {"t": "probability", "a": "probability", "c": name, "r": name},
        "vocabulary": {
            "code_start": v.code_start, "code_stop": v.code_stop, "mask": v.mask_id, "open": [v.soa_id, v.soa_last_id],
            "close": [v.eoa_id, v.eoa_last_id], "end": v.im_end_id,
        },
        "settings": dict(settings),
    }  # fmt: skip


def write_trace(path: str | Path, head: Mapping[str, Any], records: Iterable[TraceRecord]) -> None:
    """Write `header` and records, whole or not at all."""
    write_json_lines(path, (head, *(r.to_json() for r in records)), default=str, separators=(",", ":"))


def read_trace(path: str | Path) -> tuple[dict[str, Any], list[TraceRecord]]:
    """(header, records) of a file.  Raises `DataError` naming file and line."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such trace; write one with 'ttt generate --trace'")
    head: dict[str, Any] = {}
    records = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            raw = parse_json(line, where, "write the trace again")
            if number > 1:
                records.append(TraceRecord.from_json(raw, where))
                continue
            if not isinstance(raw, dict) or raw.get("format") != FORMAT:
                raise DataError(f"{where}: not a trace; name a file that 'ttt generate --trace' wrote")
            if raw.get("version") != VERSION:
                raise DataError(
                    f"{where}: a trace of version {raw.get('version')}, this program reads version {VERSION}; "
                    "write it again with this version"
                )
            if not isinstance(raw.get("confidence", {}), dict) or not isinstance(raw.get("vocabulary"), dict):
                raise DataError(f"{where}: 'confidence' and 'vocabulary' must be objects; write the trace again")
            head = raw
    if not head:
        raise DataError(f"{path}: the file is empty; write the trace again")
    return head, records
