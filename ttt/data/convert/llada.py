"""Data of LLaDA and LLaDA-TTS: records of ids back to turns, and plain text to records of ids for pre-training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.data.convert.chats import write_json
from ttt.data.convert.core import audio, folder_of, mapping, record
from ttt.data.convert.tokenized import Tokenizers
from ttt.data.read.records import RecordError, raw_records
from ttt.data.read.token_ids import is_ids, stream_of_ids
from ttt.errors import DataError
from ttt.interfaces import Converter
from ttt.registry import PositiveInt
from ttt.registry.families import CONVERTER

if TYPE_CHECKING:
    from ttt.text.tokenizer import TextTokenizer
    from ttt.types import TokenStream

PIECE_CHARS = 1 << 16


def _toy(folder: Path, form: str) -> TextTokenizer:
    from ttt.text.tokenizer import train_bpe

    made = train_bpe(["one cat two dogs"] * 3, 280, 4, 3, form)
    made.save(folder)
    return made


@CONVERTER.register("llada")
@dataclass(frozen=True)
class Llada(Tokenizers, Converter):
    """Records of token ids, read back as text and frames of codes.

    ``input_ids`` with ``prompt_length(s)`` and ``data_type``, ``instruction_ids`` + ``response_ids``, or conversations of
    ids.  A prompt becomes one user turn; without a prompt the row is a document.
    """

    tokenizer: str = ""  # folder of the tokenizer that made the ids; empty: the folder of the data

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """JSON list, JSONL, parquet or a folder of save_to_disk."""
        return raw_records(path)

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """Turns of text and codes; ids that no turn can hold are refused."""
        found = mapping(where, row)
        if not is_ids(found):
            raise RecordError(where, "no ids", f"holds no token ids; keys: {sorted(map(str, found))}")
        tokenizer = self._tokenizer(folder_of(where.partition("#")[0]))
        stream = stream_of_ids(where, found, tokenizer.vocab, where.rpartition("/")[2])
        cut = stream.prompt_length
        if not cut:
            turns = [("document", _spans(stream, 0, len(stream), tokenizer))]
        else:
            turns = [
                ("user", _spans(stream, 0, cut, tokenizer)), ("assistant", _spans(stream, cut, len(stream), tokenizer)),
            ]  # fmt: skip
        return record(stream.uid, turns, stream.task)

    def sample(self, folder: Path) -> Path:
        """Text and speech, and their tokenizer."""
        made = _toy(folder, "llada_tts")
        v, words = made.vocab, made.encode("one cat")
        speech = [
            v.im_start_id,
            *words,
            v.soa_id,
            *v.code_ids(np.array([[0, 1, 2], [3, 2, 1]])).tolist(),
            v.eoa_id,
            v.im_end_id,
        ]
        rows = [
            {"input_ids": speech, "prompt_lengths": 3, "data_type": "tts"},
            {"input_ids": [*words, *words], "prompt_length": len(words), "data_type": "text"},
        ]
        return write_json(folder, "llada.jsonl", rows)


def _spans(stream: TokenStream, start: int, stop: int, tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    """Spans of a stretch; control tokens and delimiters are left out, the template writes them again."""
    spans: list[dict[str, Any]] = []
    at = start
    for segment in (s for s in stream.segments if start <= s.start <= stop):
        spans.append({"text": tokenizer.decode(stream.ids[at : segment.start - 1].tolist())})
        codes = stream.ids[segment.start : segment.stop]
        whole = len(codes) // tokenizer.vocab.columns * tokenizer.vocab.columns
        spans.append(audio(tokenizer.vocab.frames(codes[:whole]), segment.style))
        at = segment.stop + 1
    spans.append({"text": tokenizer.decode(stream.ids[at:stop].tolist())})
    return [s for s in spans if s.get("text") != ""]


@CONVERTER.register("text")
@dataclass(frozen=True)
class Text(Tokenizers, Converter):
    """Plain text files, cut into ``input_ids`` of at most ``max_tokens``, for pre-training.

    What is left over at a file's end is dropped below ``min_tokens``.  Files are tokenized in pieces of whole lines.
    """

    tokenizer: str = ""  # folder of the tokenizer; empty: the folder of the text
    max_tokens: PositiveInt = 4096  # ids of a record
    min_tokens: PositiveInt = 32  # a shorter rest is dropped

    def __post_init__(self) -> None:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"need min_tokens <= max_tokens, got {self.min_tokens} and {self.max_tokens}")

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """A ``.txt`` file, or all of them in a folder, in the order of their names."""
        files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise DataError(f"{path}: no text file here (.txt)")
        for file in files:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            for number, ids in enumerate(self._chunks(file)):
                yield f"{file}[{number}]", (f"{name}[{number}]", ids)

    def _chunks(self, file: Path) -> Iterator[list[int]]:
        tokenizer = self._tokenizer(file.parent)
        ids: list[int] = []
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                while piece := lines.readlines(PIECE_CHARS):
                    text = "".join(piece)
                    tokenizer.refuse_specials(text, str(file))
                    ids += tokenizer.encode(text)
                    while len(ids) >= self.max_tokens:
                        yield ids[: self.max_tokens]
                        del ids[: self.max_tokens]
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 at byte {error.start}; convert the file") from error
        if len(ids) >= self.min_tokens:
            yield ids

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """One record of ids."""
        if not isinstance(row, tuple):
            raise RecordError(where, "not text", f"expected a stretch of a text file, got {type(row).__name__}")
        name, ids = row
        return {"uid": name, "input_ids": ids, "data_type": "text"}

    def sample(self, folder: Path) -> Path:
        """A text and its tokenizer."""
        _toy(folder, "llada_tts")
        (folder / "a.txt").write_text("one cat, two dogs\n" * 20)
        return folder / "a.txt"
