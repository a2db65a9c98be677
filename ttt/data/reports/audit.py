"""Audit of data files: counts, lengths, broken records, duplicates, overlap of training and test data.

Records are read one at a time, by several processes if asked.  Memory: 36 bytes per example (place, length, hashes) and
the hashes of the test set, so training files may be of any size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ttt.data.encode import encode_example
from ttt.data.read.examples import example_of, place_in
from ttt.data.read.records import RecordError, decode, raw_records, reason_of
from ttt.data.read.token_ids import is_ids, stream_of_ids
from ttt.data.reports.facts import SHOWN, Facts, FileReport, Keys
from ttt.data.reports.lengths import histogram, summary
from ttt.data.reports.overlap import CODES, WORDS, Table, code_runs, codes_key, text_key, word_runs, words
from ttt.data.sources.build_store import chunks, in_order
from ttt.data.sources.mix import Source, sources_of
from ttt.data.sources.store import Store, is_store
from ttt.errors import ConfigError, DataError
from ttt.io.digests import hash64
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Example, TokenStream, Turn, written_text

BLOCK = 64
OUT_OF_ORDER = "not all text, then all speech"
Tables = tuple[Table, Table]  # runs of words, runs of codes of the test examples; None while these are being collected


@dataclass(frozen=True)
class Settings:
    """What records are checked against."""

    tokenizer: str = ""  # folder or tokenizer.json; empty: lengths count words and codes, texts are not tokenized
    num_codes: int = 0  # size of the codebook without a tokenizer; 0: any code
    frame_rate_hz: float = 12.5  # frames of a second of audio
    row_tokens: int = 0  # longest row; longer examples are counted; 0: any length
    words: int = WORDS  # consecutive words that make an overlap
    codes: int = CODES  # consecutive frames that make an overlap
    literal_specials: bool = False  # text may spell special tokens

    def __post_init__(self) -> None:
        for name in ("num_codes", "row_tokens"):
            if (found := getattr(self, name)) < 0:
                raise ConfigError(f"--{name.replace('_', '-')}: must be >= 0, got {found}")


@dataclass
class Audit:
    """The whole report; `as_json` is what ``--json`` prints."""

    settings: Settings
    files: list[FileReport]
    test_files: list[FileReport]
    lengths: np.ndarray  # i64 [examples] of the training files
    unit: str
    duplicates: dict[str, dict[str, Any]]
    overlap: dict[str, Any] | None

    @property
    def errors(self) -> int:
        """Broken records and double names, training and test files together."""
        return sum(sum(f.errors.values()) for f in (*self.files, *self.test_files))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "settings": vars(self.settings), "errors": self.errors, "files": [self._file(f) for f in self.files],
            "test_files": [self._file(f) for f in self.test_files], "length": {"unit": self.unit, **summary(self.lengths)},
            "histogram": [{"from": a, "to": b, "examples": n} for a, b, n in histogram(self.lengths)],
            "duplicates": self.duplicates, "overlap": self.overlap,
        }  # fmt: skip

    def _file(self, file: FileReport) -> dict[str, Any]:
        return {**vars(file), "hours": file.frames / self.settings.frame_rate_hz / 3600}


def audit(paths: Sequence[str | Path], test: Sequence[str | Path], settings: Settings, jobs: int = 1) -> Audit:
    """Examine training files (``paths``: examples, stores or mixes) and compare them with test files.

    Raises `DataError` only for what cannot be read at all; everything else is in the report.
    """
    test_keys, keys = Keys(), Keys()
    tables: Tables | None = (Table.empty(), Table.empty())
    test_reports: list[FileReport] = []
    if test:
        runs: dict[str, list[np.ndarray]] = {"text": [], "codes": []}
        owners: dict[str, list[np.ndarray]] = {"text": [], "codes": []}
        for report, facts in _examine(test, settings, jobs, None, test_reports):
            _count(report, facts, test_keys)
            for name, hashes in (("text", facts.text_runs), ("codes", facts.code_runs)):
                assert hashes is not None
                runs[name].append(hashes)
                owners[name].append(np.full(len(hashes), len(test_keys.length) - 1, dtype=np.int64))
        tables = (Table.of(runs["text"], owners["text"]), Table.of(runs["codes"], owners["codes"]))
    reports: list[FileReport] = []
    first_hit: dict[str, dict[int, str]] = {"text": {}, "codes": {}}
    for report, facts in _examine(paths, settings, jobs, tables, reports):
        _count(report, facts, keys)
        for name, hits in (("text", facts.text_hits), ("codes", facts.code_hits)):
            for owner in () if hits is None else hits.tolist():
                first_hit[name].setdefault(owner, facts.where)
    _double_names(reports, keys)
    _double_names(test_reports, test_keys)
    unit = "tokens" if settings.tokenizer or any(is_store(p) for p in paths) else "words and codes"
    duplicates = {}
    for label, names in (("text", ("text",)), ("codes", ("codes",)), ("both", ("text", "codes"))):
        count, pairs = keys.doubles(*names)
        duplicates[label] = {"examples": count, "pairs": pairs}
    overlap = _overlap(first_hit, test_keys) if test else None
    return Audit(settings, reports, test_reports, np.asarray(keys.length, dtype=np.int64), unit, duplicates, overlap)


def _overlap(first_hit: dict[str, dict[int, str]], test: Keys) -> dict[str, Any]:
    either = set(first_hit["text"]) | set(first_hit["codes"])
    out: dict[str, Any] = {"test_examples": len(test.length), "either": len(either)}
    for name, hits in first_hit.items():
        pairs = [(test.where(owner), where) for owner, where in sorted(hits.items())[:SHOWN]]
        out[name] = {"examples": len(hits), "pairs": pairs}
    return out


def _count(report: FileReport, facts: Facts, keys: Keys) -> None:
    report.examples += 1
    report.tokens += facts.length
    report.frames += facts.frames
    report.styles.update(facts.styles)
    for warning in facts.warnings:
        report.warn(warning, facts.where)
    keys.add(facts)


def _double_names(reports: Sequence[FileReport], keys: Keys) -> None:
    """Names must differ within a file; a name in two files is two examples."""
    if not len(keys.length):
        return
    uid, place = (np.frombuffer(a, dtype="u8") for a in (keys.keys["uid"], keys.place))
    order = np.lexsort([place, uid])
    same = (uid[order][1:] == uid[order][:-1]) & (place[order][1:] >> 40 == place[order][:-1] >> 40)
    by_path = {r.path: r for r in reports}
    for i in np.flatnonzero(same):
        first, again = int(order[i]), int(order[i + 1])
        path = keys.files[keys.place[again] >> 40]
        by_path[path].error("duplicate uid", f"{keys.where(again)}: same uid as {keys.where(first)}; rename one")


# ---- one record ------------------------------------------------------------------------------------------


def _examine(
    paths: Sequence[str | Path], settings: Settings, jobs: int, tables: Tables | None, reports: list[FileReport]
) -> Iterator[tuple[FileReport, Facts]]:  # fmt: skip
    pool = None
    if jobs > 1:
        pool = ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(settings, tables)
        )
    else:
        _start_worker(settings, tables)
    try:
        for source in (s for p in paths for s in sources_of(p)):
            report = FileReport(str(source.path))
            reports.append(report)
            try:
                for facts, bad in in_order(pool, _examine_block, _work(source), 3 * jobs):
                    report.records += len(facts) + len(bad)
                    for error in bad:
                        report.error(error.reason, str(error))
                    yield from ((report, one) for one in facts)
                if not report.records:
                    report.error("no records", f"{source.path}: no records in it; write it again or leave it out")
            except RecordError as error:  # the rest of a list in one .json file cannot be found again
                report.error(error.reason, f"{error}; nothing behind it was read")
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


def _work(source: Source) -> Iterator[tuple[Source, Any]]:
    if is_store(source.path):
        n = len(Store(source.path))
        yield from ((source, range(at, min(at + BLOCK, n))) for at in range(0, n, BLOCK))
    else:
        yield from ((source, block) for block in chunks(raw_records(source.path), BLOCK))


_worker: dict[str, Any] = {}


def _start_worker(settings: Settings, tables: Tables | None) -> None:
    tokenizer = TextTokenizer.load(settings.tokenizer) if settings.tokenizer else None
    _worker.update(settings=settings, tokenizer=tokenizer, tables=tables, stores={})


def _examine_block(work: tuple[Source, Any]) -> tuple[list[Facts], list[RecordError]]:
    source, items = work
    facts: list[Facts] = []
    bad: list[RecordError] = []
    if isinstance(items, range):
        store = _worker["stores"].setdefault(source.path, None) or Store(source.path)
        _worker["stores"][source.path] = store
        items = [(f"{source.path}[{i}]", store[i]) for i in items]
    for where, raw in items:
        try:
            if isinstance(raw, TokenStream):
                facts.append(_stream_facts(where, raw))
            else:
                facts.append(_record_facts(where, decode(where, raw), source.name))
        except RecordError as error:
            bad.append(RecordError(where, error.reason, str(error).removeprefix(f"{where}: ")))
        except DataError as error:
            bad.append(RecordError(where, reason_of(error), str(error)))
    return facts, bad


def _record_facts(where: str, record: Any, source: str) -> Facts:
    if not is_ids(record):
        return _example_facts(where, example_of(where, record, source))
    if _worker["tokenizer"] is None:
        raise RecordError(where, "ids without a tokenizer", "holds token ids; name the tokenizer they were made with")
    vocab = _worker["tokenizer"].vocab
    stream = stream_of_ids(where, record, vocab, place_in(where, source))
    spoken = [s for s in stream.segments if s.target]
    if not spoken or record.get("cut"):  # a record that its converter cut ends early, and says so
        return _stream_facts(where, stream)
    if vocab.rules.delimited and spoken[-1].style.startswith("open"):
        message = f"uid {stream.uid!r}: the codes go on to the last id: a model never learns to end its speech"
        raise RecordError(where, "speech without an end token", f"{message}; write the whole answer, or drop the record")
    facts = _stream_facts(where, stream)
    if vocab.im_end_id not in stream.ids[-2:]:
        facts.warnings = (*facts.warnings, "answer without its end token")
    return facts


def _example_facts(where: str, example: Example) -> Facts:
    settings, tokenizer = _worker["settings"], _worker["tokenizer"]
    turns = [t for t in example.turns if t.role != "system"]
    texts = [written_text(t.spans) for t in turns]
    spans = [s for t in turns for s in t.spans if s.codes is not None]
    arrays = [s.codes for s in spans if s.codes is not None]
    if tokenizer is not None:
        length = len(encode_example(example, tokenizer, literal_specials=settings.literal_specials))
    else:
        for codes in arrays:
            if settings.num_codes and codes.size and int(codes.max()) >= settings.num_codes:
                message = (
                    f"uid {example.uid!r}: code {int(codes.max())} is outside the codebook of {settings.num_codes}"
                )
                raise RecordError(where, "code out of range", f"{message}; encode with the codec this data is for")
        length = sum(len(words(t)) for t in texts) + sum(a.size for a in arrays)
    warnings = [
        *(["empty audio span"] if any(not len(a) for a in arrays) else []),
        *(
            ["nothing to learn (no assistant turn or document)"]
            if not any(t.is_target and t.spans for t in turns)
            else []
        ),
        *([OUT_OF_ORDER] if tokenizer is not None and tokenizer.vocab.rules.text_first and _out_of_order(turns) else []),
    ]
    return _facts(where, example.uid, length, texts, arrays, Counter(s.style for s in spans), warnings)


def _out_of_order(turns: Sequence[Turn]) -> bool:
    """Has an answer speech without text before it, or text behind speech?"""
    for turn in turns:
        kinds = [s.kind for s in turn.spans if turn.is_target and (s.codes is not None or s.text.strip())]
        if "audio" in kinds and (kinds[0] == "audio" or "text" in kinds[kinds.index("audio") :]):
            return True
    return False


def _stream_facts(where: str, stream: TokenStream) -> Facts:
    tokenizer = _worker["tokenizer"]
    if tokenizer is not None and len(stream) and int(stream.ids.max()) >= tokenizer.vocab.size:
        message = f"uid {stream.uid!r}: id {int(stream.ids.max())} is outside the vocabulary of {tokenizer.vocab.size}"
        raise RecordError(where, "id out of range", f"{message}; pack again with this tokenizer")
    for s in stream.segments if tokenizer is not None else ():
        codes = stream.ids[s.start : s.stop]
        try:
            tokenizer.vocab.frames(codes[: len(codes) - len(codes) % tokenizer.vocab.columns], f"uid {stream.uid!r}")
        except DataError as error:
            raise RecordError(where, "code out of place", str(error)) from None
    codebooks = 1 if tokenizer is None else tokenizer.vocab.columns
    arrays = [stream.ids[s.start : s.stop - (s.stop - s.start) % codebooks].reshape(-1, codebooks) for s in stream.segments]
    warnings = [
        *(["empty audio span"] if any(not len(a) for a in arrays) else []),
        *(["nothing to learn (no assistant turn or document)"] if not stream.target.any() else []),
    ]
    text = stream.ids[stream.kind == 1]
    facts = _facts(where, stream.uid, len(stream), [], arrays, Counter(s.style for s in stream.segments), warnings)
    facts.text = hash64(text.tobytes())
    return facts


def _facts(
    where: str, uid: str, length: int, texts: list[str], arrays: list[np.ndarray], styles: Counter[str], warnings: list[str]
) -> Facts:  # fmt: skip
    settings, tables = _worker["settings"], _worker["tables"]
    if settings.row_tokens and length > settings.row_tokens:
        warnings = [*warnings, f"longer than {settings.row_tokens}"]
    facts = Facts(
        where, hash64(uid.encode()), length, sum(len(a) for a in arrays), styles, tuple(warnings), text_key(texts),
        codes_key(arrays),
    )  # fmt: skip
    if tables is not None and not any(len(t.hashes) for t in tables):
        return facts
    nothing = np.zeros(0, dtype=np.uint64)
    text_runs = np.concatenate([nothing, *(word_runs(t, settings.words) for t in texts)])
    codes_runs = np.concatenate([nothing, *(code_runs(a, settings.codes) for a in arrays)])
    if tables is None:
        facts.text_runs, facts.code_runs = text_runs, codes_runs
    else:
        facts.text_hits, facts.code_hits = tables[0].hits(text_runs), tables[1].hits(codes_runs)
    return facts
