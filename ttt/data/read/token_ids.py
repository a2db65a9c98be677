"""Records that hold token ids instead of turns -> `TokenStream`, as data of LLaDA (arXiv 2502.09992) and LLaDA-TTS do.

    {"input_ids": [...], "prompt_length": n}                       also prompt_lengths; n ids are prompt, the rest is the answer
    {"input_ids": [...], "data_type": "tts"}                       the answer begins where speech does
    {"input_ids": [...]}                                           plain text: every id is to be learned
    {"instruction_ids": [...], "response_ids": [...]}
    {"conversations": [{"from": "human", "input_ids": [...]}, ...]}  up to the first answer, as the published loader does

``attention_mask`` may mark padding at the end.  ``labels`` (-100: no loss) replace prompt lengths where they are given.
Ids are checked against the tokenizer's vocabulary, codes against their position in the frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ttt.config.schema import PromptRule
from ttt.data.encode import encode_example
from ttt.data.read.examples import SENDERS, example_of, name_of_record, place_in
from ttt.data.read.records import RecordError, decode, reason_of
from ttt.errors import DataError, suggest
from ttt.text.tokenizer import TextTokenizer
from ttt.text.vocab import Vocabulary
from ttt.types import Kind, Segment, TokenStream, audio_runs

DATA_TYPES = ("tts", "text")
IGNORED = -100


def stream_of(
    where: str, raw: Any, source: str, tokenizer: TextTokenizer, *, prompt_rule: PromptRule = "labels",
    literal_specials: bool = False,
) -> TokenStream:  # fmt: skip
    """Token stream of a raw record of any kind; one without an id is named by its place in ``source``.

    Raises `RecordError` naming place and uid.
    """
    record = decode(where, raw)
    if is_ids(record):
        return stream_of_ids(where, record, tokenizer.vocab, place_in(where, source))
    example = example_of(where, record, source)
    try:
        return encode_example(example, tokenizer, prompt_rule=prompt_rule, literal_specials=literal_specials)
    except RecordError:
        raise
    except DataError as error:
        raise RecordError(where, reason_of(error), str(error)) from error


def is_ids(record: Any) -> bool:
    """Does a record hold ids?"""
    if not isinstance(record, Mapping):
        return False
    turns = record.get("conversations")
    if "input_ids" in record or "response_ids" in record:
        return True
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and "input_ids" in turns[0]


def stream_of_ids(where: str, record: Mapping[str, Any], vocab: Vocabulary, name: str = "") -> TokenStream:
    """The stream of a record of ids.  Raises `RecordError` naming the first id or field that is wrong."""
    uid = name_of_record(record, where, name or where)
    task = record.get("task") or ""
    try:
        if not isinstance(task, str):
            raise RecordError("", "wrong type", f"task must be text, got {str(task)[:40]}; mend or drop the record")
        ids, prompt = _ids_of(record)
        ids, keep = _without_padding(record, ids)
        if not len(ids):
            raise RecordError("", "no tokens", "input_ids is empty; drop the record")
        outside = np.flatnonzero((ids < 0) | (ids >= vocab.size))
        if len(outside):
            first = int(outside[0])
            raise RecordError(
                "", "id out of range",
                f"id {ids[first]} at place {first} is outside the vocabulary of {vocab.size}; name the tokenizer it was made with",
            )  # fmt: skip
        kind = np.where(vocab.is_audio(ids) & (ids != vocab.mask_id), Kind.AUDIO, Kind.TEXT).astype(np.uint8)
        spans = _spans(ids, vocab)
        speech = _is_speech(record, spans)
        if speech:
            if not spans:
                raise RecordError(
                    "", "no speech", "data_type is 'tts', but nothing opens a span of codes; drop the record"
                )
            prompt = spans[0][0] - 1
        prompt = 0 if prompt is None else prompt
        if not 0 <= prompt <= len(ids):
            raise RecordError(
                "", "wrong prompt length", f"prompt_length {prompt} is not in [0, {len(ids)}]; mend the record"
            )
        target = _labels(record, keep, np.arange(len(ids)) >= prompt)
        segments = tuple(_segment(ids, target, *span, vocab) for span in spans)
    except RecordError as error:
        raise RecordError(where, error.reason, f"uid {uid!r}: {error.message}") from error
    except DataError as error:
        raise RecordError(where, "code out of range", f"uid {uid!r}: {error}") from error
    return TokenStream(
        uid=uid, ids=ids, kind=kind, run_id=audio_runs(kind), target=target, noisable=target.copy(), segments=segments,
        task=task or ("tts" if speech else "text"), prompt_length=prompt,
    )  # fmt: skip


def array_of(value: Any, name: str) -> np.ndarray:
    """Integers i64 [n].  Raises `RecordError` for anything else."""
    try:
        values = np.asarray(value)
    except ValueError:  # lists of several lengths
        values = np.asarray(None)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise RecordError(
            "", "not ids", f"{name} must be a list of whole numbers, got {str(value)[:40]}; mend the record"
        )
    return values.astype(np.int64)


def _ids_of(record: Mapping[str, Any]) -> tuple[np.ndarray, int | None]:
    """(ids, length of the prompt if the record's form says it)."""
    if "input_ids" in record:
        prompt_length = next((record[k] for k in ("prompt_length", "prompt_lengths") if record.get(k) is not None), None)
        if prompt_length is not None:
            one = prompt_length if isinstance(prompt_length, list | tuple | np.ndarray) else [prompt_length]
            values = array_of(one, "prompt_length")
            if len(values) != 1:
                raise RecordError(
                    "", "wrong prompt length", f"prompt_lengths must be one number, got {prompt_length}; mend the record"
                )
            prompt_length = int(values[0])
        return array_of(record["input_ids"], "input_ids"), prompt_length
    if "response_ids" in record:
        instruction = array_of(record.get("instruction_ids", []), "instruction_ids")
        return np.concatenate([instruction, array_of(record["response_ids"], "response_ids")]), len(instruction)
    parts: list[np.ndarray] = []
    for number, turn in enumerate(record["conversations"]):
        if not isinstance(turn, Mapping):
            raise RecordError("", "not turns of ids", f"turn {number} must be an object, got {type(turn).__name__}")
        sender = turn.get("from", turn.get("role"))
        known = isinstance(sender, str) and sender in SENDERS
        if not known or "input_ids" not in turn:
            near = suggest(str(sender).lower(), SENDERS)
            what = "no input_ids" if known else f"unknown sender {sender!r}.{near}"
            raise RecordError("", "not turns of ids", f"turn {number}: {what}; known: {', '.join(SENDERS)}")
        parts.append(array_of(turn["input_ids"], f"input_ids of turn {number}"))
        if SENDERS[str(sender)] == "assistant":
            return np.concatenate(parts), sum(map(len, parts[:-1]))
    raise RecordError("", "no answer", "no turn of the assistant; drop the record")


def _without_padding(record: Mapping[str, Any], ids: np.ndarray) -> tuple[np.ndarray, int]:
    mask = record.get("attention_mask")
    if mask is None:
        return ids, len(ids)
    seen = array_of(mask, "attention_mask")
    keep = int(seen.sum())
    if len(seen) != len(ids) or not np.array_equal(seen, np.arange(len(ids)) < keep):
        raise RecordError(
            "", "wrong attention mask", f"attention_mask must be ones, then zeros, for {len(ids)} ids; mend the record"
        )
    return ids[:keep], keep


def _spans(ids: np.ndarray, vocab: Vocabulary) -> list[tuple[int, int]]:
    """[start, stop) of the codes behind every opener."""
    opens = np.flatnonzero(np.isin(ids, (vocab.soa_id, vocab.soa_last_id)))
    code = (ids >= vocab.code_start) & (ids < vocab.code_stop)
    spans = []
    for at in opens.tolist():
        other = np.flatnonzero(~code[at + 1 :])
        spans.append((at + 1, at + 1 + int(other[0]) if len(other) else len(ids)))
    return spans


def _is_speech(record: Mapping[str, Any], spans: list[tuple[int, int]]) -> bool:
    data_type = record.get("data_type")
    if data_type is None:
        return any(stop > start for start, stop in spans) and record.get("prompt_length") is None
    if not isinstance(data_type, str) or data_type not in DATA_TYPES:
        raise RecordError(
            "",
            "unknown data_type",
            f"data_type {data_type!r} is none of {', '.join(DATA_TYPES)}.{suggest(str(data_type), DATA_TYPES)}",
        )
    return data_type == "tts"


def _labels(record: Mapping[str, Any], keep: int, target: np.ndarray) -> np.ndarray:
    if record.get("labels") is None:
        return target
    labels = array_of(record["labels"], "labels")
    if len(labels) < keep:
        raise RecordError("", "wrong labels", f"labels has {len(labels)} entries for {keep} ids; mend the record")
    return labels[:keep] != IGNORED


def _segment(ids: np.ndarray, target: np.ndarray, start: int, stop: int, vocab: Vocabulary) -> Segment:
    """One span of codes, its frames checked; it lies in the turn that ends with the stream."""
    end = int(ids[stop]) if stop < len(ids) else None
    styles = {vocab.user_end_id: "user", vocab.eoa_id: "span", vocab.eoa_last_id: "last"}
    if end is not None and end not in styles:
        raise RecordError(
            "",
            "codes interrupted",
            f"id {end} at place {stop} stands among codes and does not end them; mend the record",
        )
    codes = ids[start:stop]
    if end is None:  # a row that was cut somewhere
        codes = codes[: len(codes) // vocab.columns * vocab.columns]
    vocab.frames(codes, f"codes from place {start} on")
    style = "open_last" if end is None else styles[end]
    return Segment(start, stop, style, 0, len(ids), bool(target[min(start, len(ids) - 1)]))
