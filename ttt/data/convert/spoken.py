"""Spoken chats of other projects: SLAM-Omni, slamkit, LLaMA-Omni, VITA-Audio."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ttt.audio.sound import Sound
from ttt.data.convert.chats import write_json
from ttt.data.convert.core import (
    audio,
    folder_of,
    mapping,
    need_columns,
    record,
    spoken_answer,
    text_of,
    uid_of,
    units,
    unmarked,
    wav,
)  # fmt: skip
from ttt.data.convert.corpora import silence
from ttt.data.convert.sound_tables import table_files, table_rows
from ttt.data.convert.tokenized import Tokenizers
from ttt.data.read.examples import TextUnit, words_of
from ttt.data.read.records import RecordError, list_or_lines, raw_records
from ttt.interfaces import Converter
from ttt.io.arrow import parquet
from ttt.registry import NonNegativeInt, PositiveInt
from ttt.registry.families import CONVERTER

SLAM_OMNI_COLUMNS = ("question", "answer", "answer_cosyvoice_speech_token")
VOICE_ASSISTANT_COLUMNS = ("split_name", "index", "round", "question", "answer", "answer_snac")
SNAC_CODES = 7  # of a frame, at 24 kHz
UNIT_KEYS = ("units", "unit", "tgt_units", "speech_units", "prediction_units")


@dataclass(frozen=True)
class _Spoken(Tokenizers, Converter):
    """Shared fields: how text and codes of an answer are laid out."""

    text_chunk: NonNegativeInt = 0  # tokens between two spans of an answer; 0: all text, then all codes
    audio_chunk: PositiveInt = 26  # codes of a span, with text_chunk > 0
    text_unit: TextUnit = "tokens"  # what text_chunk counts: tokens (as in TtT's data) | words
    tokenizer: str = ""  # folder of the tokenizer whose tokens text_chunk counts
    num_codes: NonNegativeInt = 0  # size of the codebook; 0: not checked
    system: str = ""  # system message

    def __post_init__(self) -> None:
        if self.text_chunk and self.text_unit == "tokens" and not self.tokenizer:
            raise ValueError("text_chunk counts tokens; name the folder of a tokenizer in 'tokenizer', or set text_unit=words")

    def _answer(self, text: str, codes: Any, where: str) -> list[dict[str, Any]]:
        pieces = words_of if self.text_unit == "words" or not self.text_chunk else self._tokenizer(Path()).pieces
        return spoken_answer(text, units(codes, self.num_codes, where), self.text_chunk, self.audio_chunk, pieces)

    def _chat(self, uid: str, turns: list[tuple[str, list[dict[str, Any]]]], **meta: Any) -> dict[str, Any]:
        return record(uid, [("system", [{"text": self.system}]), *turns], **meta)


@CONVERTER.register("slam_omni")
@dataclass(frozen=True)
class SlamOmni(_Spoken):
    """SLAM-Omni tables: ``question``, ``answer``, ``answer_cosyvoice_speech_token`` (50 codes a second, 4096 codes).

    Examples are of the task ``text_then_speech``.
    """

    num_codes: NonNegativeInt = 4096  # CosyVoice's codebook

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Parquet (the three columns only; recordings in it are not read), JSON list or JSONL."""
        need_columns(path, SLAM_OMNI_COLUMNS)
        return raw_records(path, SLAM_OMNI_COLUMNS)

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """Text question; the answer's text, then its codes."""
        found = mapping(where, row)
        question, answer = (unmarked(text_of(found, key, where), key, where) for key in SLAM_OMNI_COLUMNS[:2])
        spoken = self._answer(answer, found.get(SLAM_OMNI_COLUMNS[2]), where)
        turns = [("system", [{"text": self.system}]), ("user", [{"text": question}]), ("assistant", spoken)]
        return record(uid_of({}, where), turns, "text_then_speech", text_ref=answer, speech_ref=answer)

    def sample(self, folder: Path) -> Path:
        """Two rows as JSONL; tokens as numbers and as strings."""
        rows = [
            {"question": "why", "answer": "so it is", "answer_cosyvoice_speech_token": t}
            for t in ([1, 2, 3], ["4", "4095"])
        ]
        return write_json(folder, "slam.jsonl", rows)


@CONVERTER.register("voice_assistant")
@dataclass(frozen=True)
class VoiceAssistant(_Spoken):
    """VoiceAssistant-400K: ``question``, ``question_audio``, ``answer``, ``answer_snac`` (7 codes a frame, 4096 codes).

    ``answer_snac`` is one string, ``# c0 c1 ... c6`` per frame, in SNAC's order of 24 kHz (the codec ``snac``).  The question
    stays sound in its row until 'ttt data encode'.  Layout: parquet of gpt-omni/VoiceAssistant-400K on the Hugging Face Hub;
    the string as Mini-Omni's ``utils/snac_utils.py`` writes and reads it.
    """

    num_codes: NonNegativeInt = 4096  # SNAC's codebooks
    user: Literal["audio", "text", "both"] = "audio"  # what the user's turn holds: audio | text | both (text first)
    part: str = ""  # split of a folder of shards or of a saved dictionary, as train

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Parquet shards, a folder of them, or a saved dataset; sound is not read."""
        for file in table_files(path, self.part):
            need_columns(file, (*VOICE_ASSISTANT_COLUMNS, "question_audio"))
        for where, file, number, row in table_rows(path, VOICE_ASSISTANT_COLUMNS, self.part):
            yield where, {**row, "question_audio": str(Sound(file.absolute(), cell=(number, "question_audio")))}

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """Spoken question; the answer's text, then its codes."""
        found = mapping(where, row)
        question, answer = (unmarked(text_of(found, key, where), key, where) for key in ("question", "answer"))
        groups = text_of(found, "answer_snac", where).split("#")
        frames = [units(group, self.num_codes, where)[:, 0] for group in groups[1:] if group.strip()]
        if groups[0].strip() or not frames or any(len(frame) != SNAC_CODES for frame in frames):
            message = f"answer_snac: expected '#' and {SNAC_CODES} codes for every frame; mend or drop the row"
            raise RecordError(where, "not codes", message)
        pieces = words_of if self.text_unit == "words" or not self.text_chunk else self._tokenizer(Path()).pieces
        spoken = spoken_answer(answer, np.stack(frames), self.text_chunk, self.audio_chunk, pieces)
        asked = [] if self.user == "audio" else [{"text": question}]
        if self.user != "text":
            asked.append({"wav": text_of(found, "question_audio", where), "style": "user"})
        about = {key: found.get(key) for key in ("split_name", "index", "round")}
        return self._chat(where.rpartition("/")[2], [("user", asked), ("assistant", spoken)], text_ref=answer, **about)

    def sample(self, folder: Path) -> Path:
        """One row of two frames, as parquet."""
        write_table = parquet().write_table
        import pyarrow as pa

        silence(folder / "q.wav", 0.5)
        sound = {"bytes": (folder / "q.wav").read_bytes(), "path": "q.wav"}
        (folder / "q.wav").unlink()
        row = {"split_name": "qa", "index": "0", "round": "0", "question": "why", "question_audio": sound, "answer": "so",
               "answer_snac": "# 1 2 3 4 5 6 7 # 8 9 10 11 12 13 4095"}  # fmt: skip
        write_table(pa.Table.from_pylist([row]), folder / "train-00000-of-00001.parquet")
        return folder


@CONVERTER.register("slamkit")
@dataclass(frozen=True)
class SlamKit(_Spoken):
    """slamkit's features: ``user_text``, ``user_audio.units``, ``assistant_text``, ``assistant_audio.units``."""

    user: Literal["audio", "text", "both"] = "audio"  # what the user's turn holds: audio | text | both (text first)

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """JSON list or JSONL."""
        return raw_records(path)

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """Spoken question, spoken answer."""
        found = mapping(where, row)
        heard, spoken = (found.get(key) or {} for key in ("user_audio", "assistant_audio"))
        if not isinstance(heard, Mapping) or not isinstance(spoken, Mapping):
            raise RecordError(
                where, "no units", "user_audio and assistant_audio must be objects with 'units'; mend the row"
            )
        spans = [{"text": text_of(found, "user_text", where)}] if self.user != "audio" else []
        if self.user != "text":
            spans.append(audio(units(heard.get("units"), self.num_codes, where), "user"))
        answer = self._answer(text_of(found, "assistant_text", where, ""), spoken.get("units"), where)
        return self._chat(uid_of(found, where), [("user", spans), ("assistant", answer)])

    def sample(self, folder: Path) -> Path:
        """One row."""
        sound = {"units": [1, 5, 5], "duration": 0.12}
        return write_json(folder, "features.jsonl", [
            {"user_text": "hello", "user_audio": sound, "assistant_text": "hi", "assistant_audio": sound},
        ])  # fmt: skip


@CONVERTER.register("llama_omni")
@dataclass(frozen=True)
class LlamaOmni(_Spoken):
    """LLaMA-Omni: ``conversations`` with ``<speech>`` or ``speech`` wavs and answers' ``units``; or its answer files.

    A turn may hold ``value`` or ``text``, ``speech`` (a wav) and ``units`` (a list or "12 7 7"); a wav or units of the
    whole row belong to the first ``<speech>`` and to the last answer.  Answer files: ``prediction`` +
    ``prediction_units``, put to the question ``prompt``.
    """

    num_codes: NonNegativeInt = 1000  # HuBERT k-means units
    root: str = ""  # folder that wav paths count from; empty: the file's
    prompt: str = "Please directly answer the questions in the user's speech."  # question of an answer file's rows

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """JSON list or JSONL; what is in a ``.json`` file may also be one object a line, as their programs write it."""
        return list_or_lines(path)

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """A chat: wavs stay sound files until 'ttt data encode', units become codes."""
        found = mapping(where, row)
        base = Path(self.root) if self.root else folder_of(where)
        uid = uid_of(found, where, "question_id")
        if "prediction" in found:
            answer = self._answer(text_of(found, "prediction", where), _units(found), where)
            return self._chat(uid, [("user", [{"text": self.prompt}]), ("assistant", answer)])
        turns = found.get("conversations", found.get("conversation"))
        if not isinstance(turns, list) or not turns or not all(isinstance(t, Mapping) for t in turns):
            raise RecordError(where, "no conversations", f"no list 'conversations'; keys: {sorted(map(str, found))}")
        chat: list[tuple[str, list[dict[str, Any]]]] = []
        speech, answered = found.get("speech"), False
        last = max((i for i, t in enumerate(turns) if t.get("from") in ("gpt", "assistant")), default=-1)
        for number, turn in enumerate(turns):
            place = f"{where}, turn {number}"
            words = text_of(turn, "value" if "value" in turn else "text", place, default="")
            if turn.get("from") in ("human", "user"):
                if speech and "speech" not in turn and "<speech>" in words:
                    turn, speech = {**turn, "speech": speech}, None
                spans = [wav(turn["speech"], base, "user", place)] if turn.get("speech") else []
                instruction = words.replace("<speech>", "").strip("\n")
                # Where the wav says it all, `text` is its transcript and no part of the prompt.
                chat.append(("user", [*spans, *([] if spans and "value" not in turn else [{"text": instruction}])]))
            elif turn.get("from") in ("gpt", "assistant"):
                codes = _units(turn) if _units(turn) is not None else _units(found) if number == last else None
                chat.append(("assistant", [{"text": words}] if codes is None else self._answer(words, codes, place)))
                answered = answered or bool(words.strip()) or codes is not None
            else:
                raise RecordError(
                    where, "unknown sender", f"turn {number}: unknown sender {turn.get('from')!r}; known: human, gpt"
                )
        if not answered or chat[-1][0] != "assistant":
            raise RecordError(
                where, "no answer", "the last turn is not an answer; question files hold nothing to train on"
            )
        return self._chat(uid, chat)

    def sample(self, folder: Path) -> Path:
        """One chat with units, and a line of an answer file."""
        turns = [{"from": "human", "value": "say hi"}, {"from": "gpt", "value": "hi there", "units": "5 5 17"}]
        return write_json(folder, "units.jsonl", [
            {"id": "a", "conversations": turns}, {"question_id": "b", "prediction": "well", "prediction_units": "1 2"},
        ])  # fmt: skip


def _units(row: Mapping[str, Any]) -> Any:
    return next((row[k] for k in UNIT_KEYS if row.get(k) is not None), None)


@CONVERTER.register("vita_audio")
@dataclass(frozen=True)
class VitaAudio(Converter):
    """VITA-Audio: ``messages`` with ``<|audio|>`` in their content, and ``audios``, the wavs in the same order."""

    root: str = ""  # folder that wav paths count from; empty: the file's

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """JSON list or JSONL."""
        return raw_records(path)

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """Wavs stay sound files until 'ttt data encode'; the last one of an answer becomes its quad span."""
        found = mapping(where, row)
        messages, audios = found.get("messages"), found.get("audios") or []
        if not isinstance(audios, list):
            raise RecordError(
                where, "audios do not match", f"'audios' must be a list of paths, got {type(audios).__name__}"
            )
        audios = list(audios)
        if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
            raise RecordError(where, "no messages", f"no list 'messages'; keys: {sorted(map(str, found))}")
        marks = sum(text_of(m, "content", where, "").count("<|audio|>") for m in messages)
        if marks != len(audios):
            raise RecordError(
                where,
                "audios do not match",
                f"{marks} <|audio|> in the messages, {len(audios)} audios; mend or drop the row",
            )
        base = Path(self.root) if self.root else folder_of(where)
        turns: list[tuple[str, list[dict[str, Any]]]] = []
        for number, message in enumerate(messages):
            place, role = f"{where}, message {number}", message.get("role")
            if role not in ("system", "user", "assistant") or (role == "system" and number):
                raise RecordError(
                    where, "unknown role", f"message {number} has role {role!r}; roles: system (first), user, assistant"
                )
            spans: list[dict[str, Any]] = []
            for piece in re.split(r"\n?(<\|audio\|>)\n?", text_of(message, "content", place, "")):
                if piece == "<|audio|>":
                    spans.append(wav(audios.pop(0), base, "user" if role == "user" else "span", place))
                else:
                    spans.append({"text": piece})
            sounds = [s for s in spans if "wav" in s]
            if role == "assistant" and sounds:
                sounds[-1]["style"] = "last"
            turns.append((role, spans))
        if not turns or turns[-1][0] != "assistant":
            raise RecordError(where, "no answer", "the last message is not the assistant's; drop the row")
        system = [] if turns[0][0] == "system" else [("system", [{"text": ""}])]
        return record(uid_of(found, where), [*system, *turns])

    def sample(self, folder: Path) -> Path:
        """A spoken question and a written answer; the wav is a tenth of a second of silence."""
        import wave

        with wave.open(str(folder / "q.wav"), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(16000)
            out.writeframes(bytes(3200))
        messages = [{"role": "user", "content": "write it\n<|audio|>"}, {"role": "assistant", "content": "hm"}]
        return write_json(folder, "vita.jsonl", [{"messages": messages, "audios": ["q.wav"]}])
