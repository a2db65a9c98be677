"""Spoken chats of other projects: SLAM-Omni and SLAM-LLM, slamkit, LLaMA-Omni, VITA-Audio."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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
from ttt.data.read.records import RecordError, decode, list_or_lines, raw_records
from ttt.interfaces import Converter
from ttt.io.arrow import parquet
from ttt.registry import NonNegativeInt, PositiveInt
from ttt.registry.families import CONVERTER

SLAM_OMNI_COLUMNS = ("question", "answer", "answer_cosyvoice_speech_token", "question_audio", "split_name", "index", "round")
# Names of fields in SLAM-Omni's tables, and in SLAM-LLM's JSONL
ASKED, ANSWERED, ASKED_SOUND = ("question", "source_text"), ("answer", "target_text"), ("question_audio", "source_wav")
ANSWER_CODES = ("answer_cosyvoice_speech_token", "target_token")
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
    """SLAM-Omni's tables and SLAM-LLM's JSONL: question, answer, and the answer's CosyVoice codes (50 a second, 4096 codes).

    Tables have ``question``, ``question_audio``, ``answer``, ``answer_cosyvoice_speech_token``; lines have ``source_text``,
    ``source_wav``, ``target_text`` and ``target_token`` (or ``target_wav``, which stays sound until 'ttt data encode').  Rows
    of several rounds write the dialogue so far into the question, ``USER: ... ASSISTANT: ... <USER>: ...``: rounds that follow
    each other become one conversation; where the earlier rounds are not there, that text becomes its history, without loss.
    Examples are of the task ``text_then_speech``.  Layout: X-LANCE/SLAM-LLM, ``examples/s2s``.
    """

    num_codes: NonNegativeInt = 4096  # CosyVoice's codebook
    user: Literal["text", "audio", "both"] = "text"  # what the user's turns hold: text | audio | both (text first)

    def rows(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Several rounds of one dialogue as `Rounds`.  Parquet shards, saved datasets, JSON list or JSONL."""
        rounds = Rounds()
        for where, raw in self._rounds(path):
            try:
                row = decode(where, raw)
            except RecordError:
                row = raw  # `convert` refuses it
            if rounds and not _goes_on(rounds[-1][1], row):
                yield rounds.as_row()
                rounds = Rounds()
            rounds.append((where, row))
        if rounds:
            yield rounds.as_row()

    def convert(self, where: str, row: Any) -> dict[str, Any]:
        """Each question, then its answer's text, then the codes of the answer."""
        turns: list[tuple[str, list[dict[str, Any]]]] = []
        last = ""
        past: list[str] = []
        rounds = row if isinstance(row, Rounds) else [(where, row)]
        for place, raw in rounds:
            found = mapping(place, raw)
            asked, answer, codes, sound = (_first_of(found, keys) for keys in (ASKED, ANSWERED, ANSWER_CODES, ASKED_SOUND))
            before, question = _split_rounds(unmarked(text_of(found, asked, place), asked, place))
            past = past if turns else before
            last = unmarked(text_of(found, answer, place), answer, place)
            heard: list[dict[str, Any]] = [] if self.user == "audio" else [{"text": question}]
            if self.user != "text":
                heard.append(_heard(found.get(sound), place))
            if found.get(codes) is None and "target_wav" in found and not self.text_chunk:
                spoken = [{"text": last}, wav(found["target_wav"], folder_of(place), "last", place)]
            else:
                spoken = self._answer(last, found.get(codes), place)
            turns += [("user", heard), ("assistant", spoken)]
        task = "text_then_speech" if self.user == "text" else "chat"
        turns.insert(0, ("system", [{"text": self.system}]))
        made = record(uid_of(mapping(*rounds[0]), where, "key"), turns, task, text_ref=last, speech_ref=last)
        history = [{"role": ("user", "assistant")[i % 2], "spans": [{"text": t}], "history": True} for i, t in enumerate(past)]
        made["turns"][1:1] = history
        return made

    def sample(self, folder: Path) -> Path:
        """Two rows as JSONL, one of two rounds; tokens as numbers and as strings."""
        rows: list[dict[str, Any]] = [
            {"question": "why", "answer": "so it is", "answer_cosyvoice_speech_token": t}
            for t in ([1, 2, 3], ["4", "4095"])
        ]
        for number, asked in enumerate(("<USER>: why", "USER: why ASSISTANT: so <USER>: and then"), 1):
            rows.append({"split_name": "qa", "index": 1, "round": number, "source_text": asked, "target_text": "so",
                         "target_token": [number]})  # fmt: skip
        return write_json(folder, "slam.jsonl", rows)

    def _rounds(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Rows as they lie; a table's recordings are named by their cells, and only where the user's turns need them."""
        if not (path.suffix == ".parquet" or path.is_dir()):
            yield from raw_records(path)
            return
        for file in table_files(path):
            need_columns(file, SLAM_OMNI_COLUMNS[:3] if self.user == "text" else SLAM_OMNI_COLUMNS[:4])
        names = [n for n in SLAM_OMNI_COLUMNS if n != "question_audio"]
        for where, file, number, row in table_rows(path, names):
            yield where, {**row, "question_audio": Sound(file.absolute(), cell=(number, "question_audio"))}


class Rounds(list[tuple[str, Any]]):
    """Rounds of one dialogue in order, each (place, row)."""

    def as_row(self) -> tuple[str, Any]:
        """What `Converter.rows` yields for them: a single round is its own row."""
        return self[0] if len(self) == 1 else (self[0][0], self)


def _first_of(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The first of ``keys`` that the row has, else the first."""
    return next((key for key in keys if key in row), keys[0])


def _heard(sound: Any, where: str) -> dict[str, Any]:
    """The span of a question's recording: a cell of a table, or a path in the row."""
    return {"wav": str(sound), "style": "user"} if isinstance(sound, Sound) else wav(sound, folder_of(where), "user", where)


def _split_rounds(text: str) -> tuple[list[str], str]:
    """(what was said before, by turns; the question) of a question with its dialogue.

    >>> _split_rounds("USER: hi ASSISTANT: hello there <USER>: and now"), _split_rounds("<USER>: hi"), _split_rounds("hi")
    ((['hi', 'hello there'], 'and now'), ([], 'hi'), ([], 'hi'))
    """
    before, mark, question = text.rpartition("<USER>:")
    if not mark:
        return [], text
    said = [t.strip() for t in re.split(r"<?(?:USER|ASSISTANT)>?:", before) if t.strip()]
    return said if len(said) % 2 == 0 else [], question.strip()


def _goes_on(earlier: Any, row: Any) -> bool:
    """Is ``row`` the round after ``earlier`` in one dialogue, which it tells so far in its question?"""
    if not isinstance(earlier, Mapping) or not isinstance(row, Mapping) or "index" not in row:
        return False
    asked = row.get(_first_of(row, ASKED))
    numbers = [str(r.get("round")) for r in (earlier, row)]
    return (
        isinstance(asked, str) and bool(_split_rounds(asked)[0]) and all(n.isdecimal() for n in numbers)
        and int(numbers[1]) == int(numbers[0]) + 1
        and all(earlier.get(key) == row[key] for key in ("split_name", "index") if key in row)
    )  # fmt: skip


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
