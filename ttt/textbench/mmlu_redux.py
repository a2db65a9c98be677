"""MMLU-Redux (Gema et al., arXiv 2406.04127) from a local folder, by two protocols.

``letters``: a chat asks for the letter of the right option; the four letters compete in the logits that follow.  ``generate``:
the model writes an answer, a rule finds the letter in it.  The annotators' findings (``error_type``, ``correct_answer``) are
ignored by default, as in the published scripts.
"""

from __future__ import annotations

import ast
import csv
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.data.read.records import KINDS, read_records
from ttt.data.read.tables import arrow_rows, is_saved, saved_files
from ttt.errors import ConfigError, DataError, suggest
from ttt.eval.intervals import bootstrap, resampled
from ttt.textbench.texts import Pair, encode

if TYPE_CHECKING:
    from ttt.textbench.scorer import TextScorer

PROTOCOLS = ("letters", "generate")
LABELS = ("original", "corrected")
PARSERS = ("letter", "any", "whole")
LETTERS = ("A", "B", "C", "D")
ASK_LETTERS = "Respond with only the letter of the correct answer."
ASK_GENERATE = "Please reply with the correct letter (A, B, C or D) only, without any further comment:"
SINGLE, MULTIPLE = "wrong_groundtruth", "multiple_correct_answers"
STOP = "</s>"
_LONE, _ANY = re.compile(r"\b([ABCD])\b"), re.compile(r"([ABCD])")
_HUMANITIES = """formal_logic high_school_european_history high_school_us_history high_school_world_history international_law
jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law world_religions"""
_SOCIAL = """econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics
high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations security_studies
sociology us_foreign_policy"""
_STEM = """abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science college_mathematics
college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics high_school_biology
high_school_chemistry high_school_computer_science high_school_mathematics high_school_physics high_school_statistics
machine_learning"""
_OTHER = """business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing medical_genetics
miscellaneous nutrition professional_accounting professional_medicine virology"""
GROUPS = {
    name: group for group, names in (
        ("stem", _STEM), ("other", _OTHER), ("social_sciences", _SOCIAL), ("humanities", _HUMANITIES)
    ) for name in names.split()
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """``answers``: numbers (0-3) that count as right; ``faults``: the annotators' ``error_type``; ``where``: file and line."""

    uid: str
    subject: str
    question: str
    choices: tuple[str, str, str, str]
    answers: tuple[int, ...]
    faults: str = "ok"
    where: str = ""


@dataclass(frozen=True)
class Protocol:
    """What is asked, which labels count, how an answer is read."""

    name: str = "letters"  # letters | generate
    labels: str = "original"  # original | corrected (by the annotators; questions without a right answer are left out)
    only_ok: bool = False  # only questions without a fault
    parse: str = (
        "letter"  # generate: letter (first lone A-D) | any (first A-D, even inside a word) | whole (the whole answer)
    )
    instruction: str = ""  # the request; empty: the protocol's own

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--protocol", self.name, PROTOCOLS), ("--labels", self.labels, LABELS), ("--parse", self.parse, PARSERS)
        ):  # fmt: skip
            if value not in known:
                raise ConfigError(f"{option}: {value!r} is none of {', '.join(known)}.{suggest(value, known)}")


@dataclass
class Chosen:
    """Questions in use, the files they come from, and how many were left out, by reason."""

    questions: list[Question]
    files: list[Path]
    left_out: Counter[str] = field(default_factory=Counter)


# ---------------------------------------------------------------------------------------------------------- reading


def read_folder(folder: str | Path, subjects: Sequence[str], protocol: Protocol, limit: int = 0) -> Chosen:
    """The questions of some subjects (none given: all there are), the first ``limit`` usable ones of each (0: all).

    A subject is a file ``SUBJECT.csv | .jsonl | .json | .parquet``, or a folder: see `subject_files`.  Raises `ConfigError` for
    subjects that are not there, `DataError` for records that are no questions.
    """
    there = subject_files(folder)
    if not there:
        raise DataError(f"{folder}: no SUBJECT.csv, .jsonl, .json or .parquet here, nor folders of them or of saved datasets")
    for name in subjects:
        if name not in there:
            raise ConfigError(
                f"--subject: {folder} has no {name!r}.{suggest(name, there)} Subjects: {', '.join(there)}"
            )
    chosen = Chosen([], [])
    for name in subjects or list(there):
        kept = 0
        chosen.files += there[name]
        for number, (where, record) in enumerate(r for file in there[name] for r in _records(file)):
            if limit and kept == limit:
                break
            found = _question(record, f"{name}/{number}", name, where, protocol)
            if isinstance(found, str):
                chosen.left_out[found] += 1
            else:
                chosen.questions.append(found)
                kept += 1
    if not chosen.questions:
        raise DataError(f"{folder}: no question is left ({dict(chosen.left_out)}); see --only-ok and --labels")
    return chosen


def subject_files(folder: str | Path) -> dict[str, list[Path]]:
    """Files by subject, both sorted; in a folder of a subject only those of the split ``test`` where names say a split.

    A subject's folder may be as published (edinburgh-dawg/mmlu-redux-2.0: ``data-00000-of-00001.arrow`` with ``state.json``),
    as the hub converts it (``test/0000.parquet``), or what ``save_to_disk`` wrote, also of a dictionary of splits.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of questions")
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_file() and entry.suffix in (".csv", *KINDS):
            if entry.stem in found:
                raise DataError(f"{entry}: {found[entry.stem][0].name} holds this subject too; keep one of them")
            found[entry.stem] = [entry]
        elif entry.is_dir():
            inside = entry / "test" if (entry / "test").is_dir() else entry
            if is_saved(inside):
                found[entry.name] = saved_files(inside)
                continue
            files = sorted(p for p in inside.iterdir() if p.suffix in (".csv", *KINDS))
            test = [p for p in files if p.name.startswith("test")]
            if files:
                found[entry.name] = test or files
    return found


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".arrow":
        yield from ((f"{path}[{i}]", row) for i, row in enumerate(arrow_rows(path, None)))
        return
    if path.suffix != ".csv":
        yield from read_records(path)
        return
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        for record in reader:
            yield f"{path}:{reader.line_num}", record


def _question(record: Any, uid: str, subject: str, where: str, protocol: Protocol) -> Question | str:
    """The question, or the reason why it is left out.  Raises `DataError` for what is no question."""
    if not isinstance(record, Mapping) or not {"question", "choices", "answer"} <= set(record):
        keys = sorted(record) if isinstance(record, Mapping) else type(record).__name__
        raise DataError(f"{where}: a question needs 'question', 'choices' and 'answer', got {keys}")
    choices = _choices(record["choices"], where)
    answer = _number(record["answer"], choices)
    if answer is None:
        raise DataError(f"{where}: answer must be 0-3 or A-D, got {record['answer']!r}")
    faults = str(record.get("error_type") or "ok").strip() or "ok"
    if protocol.only_ok and faults != "ok":
        return f"error_type {faults}"
    answers: tuple[int, ...] = (answer,)
    if protocol.labels == "corrected" and faults != "ok":
        answers = _corrected(str(record.get("correct_answer") or ""), choices, faults)
        if not answers:
            return f"no usable correction of {faults}"
    return Question(uid, subject, str(record["question"]), choices, answers, faults, where)


def _choices(value: Any, where: str) -> tuple[str, str, str, str]:
    if isinstance(value, str):  # a CSV holds the list as text
        try:
            # numpy prints lists without commas
            value = ast.literal_eval(re.sub(r"(?<=['\"])\s+(?=['\"])", ", ", value.strip()))
        except (ValueError, SyntaxError):
            raise DataError(f"{where}: choices must be a list of four texts, got {value[:60]!r}") from None
    found = [str(c) for c in value] if isinstance(value, (list, tuple, np.ndarray)) else []
    if len(found) != 4:
        raise DataError(f"{where}: choices must be a list of four texts, got {len(found)}")
    return found[0], found[1], found[2], found[3]


def _number(value: Any, choices: Sequence[str]) -> int | None:
    """0-3 of a number, a letter, or an option's own text."""
    text = str(value).strip()
    if text.upper() in LETTERS and text not in choices:
        return LETTERS.index(text.upper())
    if re.fullmatch(r"[0-3](\.0)?", text):
        return int(text[0])
    same = [i for i, c in enumerate(choices) if c.strip() == text]
    return same[0] if len(same) == 1 else None


def _corrected(correction: str, choices: Sequence[str], faults: str) -> tuple[int, ...]:
    """Right answers by the annotators: one where the label was wrong, several where several are right, else none."""
    one = _number(correction, choices) if correction else None
    if faults == SINGLE:
        return () if one is None else (one,)
    if faults != MULTIPLE:
        return ()
    parts = [p for p in re.split(r"[,;/]|\band\b|\bor\b", correction.strip("[]() ")) if p.strip()]
    several = [one] if one is not None else [_number(p.strip(" '\""), choices) for p in parts]
    return () if not several or None in several else tuple(sorted({i for i in several if i is not None}))


# ----------------------------------------------------------------------------------------------------------- asking


def prompt(question: Question, protocol: Protocol) -> str:
    """What the user says.

    ``letters`` puts each letter behind ``=`` without a space, so that it is the token the reply would be.
    """
    if protocol.name == "letters":
        options = [f"- {text}={letter}" for letter, text in zip(LETTERS, question.choices, strict=True)]
        head = f"Multiple Choice question: {question.question}"
        return "\n".join([head, *options, "", protocol.instruction or ASK_LETTERS])
    options = [f"{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=True)]
    return "\n".join([question.question.strip(), *options, protocol.instruction or ASK_GENERATE])


def parse(written: str, how: str) -> int | None:
    """The number of the letter an answer gives, None where it gives none.

    ``letter``: the first lone A-D.  ``any``: the first A-D, even inside a word.  ``whole``: the answer itself, case and
    punctuation ignored.

    >>> [parse("Because B, not A.", how) for how in ("letter", "any", "whole")], parse(" c. ", "whole"), parse("c", "letter")
    ([1, 1, None], 2, None)
    """
    if how == "whole":
        answer = written.translate(str.maketrans("", "", string.punctuation)).strip().upper()
        return LETTERS.index(answer) if answer in LETTERS else None
    found = (_LONE if how == "letter" else _ANY).search(written)
    return LETTERS.index(found[1]) if found else None


def letter_ids(scorer: TextScorer) -> list[int]:
    """The tokens A, B, C, D.  Raises `DataError` for a tokenizer that splits them."""
    found = [scorer.tokenizer.encode(letter) for letter in LETTERS]
    split = [letter for letter, ids in zip(LETTERS, found, strict=True) if len(ids) != 1]
    if split:
        raise DataError(f"the tokenizer splits {split[0]!r} into several tokens; use --protocol generate")
    return [ids[0] for ids in found]


def ask(
    scorer: TextScorer, questions: Sequence[Question], protocol: Protocol, chat: bool = True
) -> list[dict[str, Any]]:
    """One record per question: what was answered (None: nothing that can be read) and whether it is right."""
    contexts = [prompt(q, protocol) for q in questions]
    if chat:
        contexts = [scorer.chat([{"role": "user", "content": c}]) for c in contexts]
    if protocol.name == "letters":
        answers = _likeliest(scorer, contexts)
        written = ["" if a is None else LETTERS[a] for a in answers]
    else:
        written = scorer.generate([(c, {"until": [STOP]}) for c in contexts])
        answers = [parse(w, protocol.parse) for w in written]
    return [
        {
            "uid": q.uid, "task": q.subject, "split": "test", "question": q.question, "choices": list(q.choices),
            "answers": list(q.answers), "predicted": a, "written": w, "error_type": q.faults,
            "statistics": {"acc": [float(a in q.answers), 1.0], "unreadable": [float(a is None), 1.0]},
        }
        for q, a, w in zip(questions, answers, written, strict=True)
    ]  # fmt: skip


def _likeliest(scorer: TextScorer, contexts: Sequence[str]) -> list[int | None]:
    ids = letter_ids(scorer)
    pairs = []
    for context in contexts:
        seen = encode(scorer.tokenizer, context)
        scorer.counts["contexts cut on the left"] += len(seen) > scorer.max_length
        pairs += [Pair(tuple(seen[-scorer.max_length :]), (i,)) for i in ids]
    scored = [s.logprob for s in scorer.score(pairs)]
    return [int(np.argmax(scored[at : at + 4])) for at in range(0, len(scored), 4)]


# ---------------------------------------------------------------------------------------------------------- scoring


def summarize(records: Sequence[Mapping[str, Any]], resamples: int = 1000, seed: int = 1) -> dict[str, dict[str, Any]]:
    """Accuracy of every subject, of each group of subjects, and of all: by question (micro) and by subject (macro).

    The macro average's interval resamples questions within each subject.
    """
    by_subject: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_subject.setdefault(record["task"], []).append(record)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for subject, group in by_subject.items():
        if subject in GROUPS:
            groups.setdefault(GROUPS[subject], []).extend(group)
    found: dict[str, dict[str, Any]] = {}
    for name, group in {**by_subject, **groups, "mmlu_redux": list(records)}.items():
        for metric in ("acc", "unreadable") if name == "mmlu_redux" else ("acc",):
            value = bootstrap(_statistics(group, metric), _mean, resamples, seed)
            found[f"{name}/{metric}"] = _entry(value.value, value.low, value.high, value.n, metric)
    means = [float(np.mean([r["statistics"]["acc"][0] for r in group])) for group in by_subject.values()]
    draws = [
        resampled(_statistics(group, "acc"), _mean, resamples, seed + i) for i, group in enumerate(by_subject.values())
    ]
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    found["mmlu_redux/macro_acc"] = _entry(float(np.mean(means)), float(low), float(high), len(records), "macro_acc")
    return found


def _statistics(records: Sequence[Mapping[str, Any]], metric: str) -> np.ndarray:
    return np.asarray([r["statistics"][metric] for r in records], dtype=np.float64)


def _mean(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


def _entry(value: float, low: float, high: float, n: int, metric: str) -> dict[str, Any]:
    return {
        "value": value, "low": low, "high": high, "n": n, "unit": "rate", "metric_id": metric,
        "higher_is_better": metric != "unreadable",
    }  # fmt: skip
