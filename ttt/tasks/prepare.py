"""From a corpus to training data: codes of its recordings, a tokenizer, the examples of its tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttt.audio.codecs.checks import same_codes
from ttt.data.read.examples import codes_array, read_records, write_examples
from ttt.errors import DataError
from ttt.interfaces import Codec, CodePattern, Task
from ttt.registry import name_of
from ttt.tasks.encode_corpus import read_skipped
from ttt.text.forms import DEFAULT_FORM
from ttt.text.tokenizer import TextTokenizer, train_bpe
from ttt.text.vocab import FLATTEN
from ttt.types import Example


def read_codes(path: Path, codec_id: str = "", num_codes: int = 0, num_codebooks: int = 0) -> dict[str, np.ndarray]:
    """Utterance id -> codes i32 [F, Q].

    ``codec_id``: refuse codes that another codec made.  ``num_codes``, ``num_codebooks``: refuse codes beyond these (0:
    not checked).  Raises `DataError` naming the line.
    """
    codes: dict[str, np.ndarray] = {}
    for where, record in read_records(path):
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: expected an object, got {type(record).__name__}; run 'ttt tokenize' again")
        if "codec" in record:
            if codec_id and not same_codes(str(record["codec"]), codec_id):
                raise DataError(
                    f"{path}: codes of codec {record['codec']!r}, the run uses {codec_id!r}; run 'ttt tokenize' again"
                )
            continue
        name = record.get("id")
        if not isinstance(name, str) or not name or "codes" not in record:
            keys = sorted(map(str, record))
            raise DataError(f"{where}: a line holds 'id' (text) and 'codes', got {keys}; run 'ttt tokenize' again")
        array = codes_array(record["codes"], where)
        if array.size == 0:
            raise DataError(f"{where}: utterance {name!r} has no codes; its wav is shorter than a frame")
        if num_codes and int(array.max()) >= num_codes:
            raise DataError(
                f"{where}: utterance {name!r}: code {int(array.max())} is outside the codebook of {num_codes}; run "
                "'ttt tokenize' again"
            )
        if num_codebooks and array.shape[1] != num_codebooks:
            raise DataError(
                f"{where}: utterance {name!r}: {array.shape[1]} codes a frame, the codec has {num_codebooks} codebooks; "
                "run 'ttt tokenize' again"
            )
        codes[name] = array
    return codes


def build_examples(
    items: Path, codes: Mapping[str, np.ndarray], tasks: Sequence[Task], tokenizer: TextTokenizer | None = None,
    left_out: Collection[str] = (),
) -> tuple[list[Example], dict[str, int]]:  # fmt: skip
    """Examples of all items, and counts by task label and of what was skipped.

    ``left_out``: utterances without codes because their recordings are unusable; items that name one are skipped.

    An item becomes one example of every task whose name, or whose field ``items``, is the item's task.
    """
    by_name: dict[str, list[Task]] = {}
    for task in tasks if tokenizer is None else [task.with_tokenizer(tokenizer) for task in tasks]:
        by_name.setdefault(getattr(task, "items", "") or name_of(task), []).append(task)
    examples: list[Example] = []
    counts: Counter[str] = Counter()
    for where, item in read_records(items):
        _check_item(item, where)
        chosen = by_name.get(item.get("task", ""), [])
        if not chosen:
            counts[f"skipped: task {item.get('task')!r} is not in the recipe"] += 1
        if left_out and any(isinstance(value, str) and value in left_out for value in item.values()):
            counts["skipped: its recording could not be encoded"] += 1
            continue
        for task in chosen:
            try:
                examples.append(task.build(item, codes))
            except KeyError as error:
                raise DataError(f"{where}: item lacks the field {error}") from error
            counts[task.label] += 1
    return examples, dict(counts)


def _check_item(item: Any, where: str) -> None:
    """Raise `DataError` for a line of an items file that holds something else than tasks read."""
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: expected an object, got {type(item).__name__}; mend or drop the line")
    if "id" not in item:
        raise DataError(f"{where}: item lacks the field 'id'; mend or drop the line")
    for key in ("id", "task", "input", "output", "split", "kind", "text_in", "text_out", "voice", "voice_text"):
        value = item.get(key, "")
        if not isinstance(value, str) and not (key == "id" and isinstance(value, int) and not isinstance(value, bool)):
            raise DataError(f"{where}: field {key!r} must be text, got {str(value)[:40]}; mend or drop the line")


def corpus_texts(items: Iterable[Path], tasks: Sequence[Task]) -> list[str]:
    """Training texts of a tokenizer: items and system messages, each as it is and after a blank."""
    texts: list[str] = [getattr(task, "system", "") for task in tasks]
    for path in items:
        for where, item in read_records(path):
            _check_item(item, where)
            texts.extend(str(item[k]) for k in ("text_in", "text_out") if item.get(k))
    roles = ["system", "user", "assistant", "\n"]
    return [
        *roles * 100,
        *(t for t in texts for t in (t, " " + t)),
        *(t for t in texts[: len(tasks)] for _ in range(100)),
    ]


def prepare(
    corpus: Path, splits: Sequence[str], out: Path, codec: Codec, tasks: Sequence[Task], tokenizer: TextTokenizer
) -> dict[str, Any]:
    """Examples of every split from codes that `encode_manifest` wrote to ``out/codes``; -> their numbers."""
    tasks = [task.at_rate(codec.code_rate_hz) for task in tasks]
    report: dict[str, Any] = {"codec": codec.codec_id, "vocabulary": tokenizer.vocab.size}
    for split in splits:
        codes = read_codes(out / "codes" / f"{split}.jsonl", codec.codec_id, codec.num_codes, codec.num_codebooks)
        left_out = read_skipped(out / "codes" / f"{split}.jsonl")
        examples, counts = build_examples(corpus / f"{split}.items.jsonl", codes, tasks, tokenizer, left_out)
        if not examples:
            raise DataError(
                f"{corpus / f'{split}.items.jsonl'}: no item of the recipe's tasks; found {counts or 'nothing'}"
            )
        write_examples(out / f"{split}.jsonl", examples)
        report[split] = counts
    return report


def corpus_tokenizer(
    corpus: Path, codec: Codec, tasks: Sequence[Task], bpe_size: int, form: str = DEFAULT_FORM,
    pattern: CodePattern = FLATTEN,
) -> TextTokenizer:  # fmt: skip
    """A small tokenizer for the texts of a corpus and the codes of a codec."""
    texts = corpus_texts([corpus / "train.items.jsonl"], tasks)
    made = train_bpe(texts, bpe_size, codec.num_codes, codec.num_codebooks, form, pattern)
    return made.made_by(codec.codec_id, codec.code_rate_hz)
