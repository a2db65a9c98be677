"""Generations -> speech -> what a judge hears -> metrics with intervals, items beside averages, samples to listen to.

A generation record (one JSON line per example, written by the decoder):
{"uid", "task", "split", "text", "codes": [[c, ..Q], ..], "calls": {"ar": n, "diffusion": m}, "seconds": its share of
the batch's wall time, "first_block_s": float | null, "stopped", "n_tokens", "forced": {name: [sum, count]} of the objective's
statistics on the true answer}.

Letters: ``F`` audio frames, ``Q`` codebooks, ``S`` wav samples.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ttt.data.read.examples import read_records
from ttt.errors import ConfigError, DataError
from ttt.eval import samples as samples_of
from ttt.eval.cards import value_to_json
from ttt.eval.intervals import bootstrap
from ttt.eval.keys import key_prefix
from ttt.eval.metrics import metric_id, rests_on
from ttt.eval.recordings import Recordings
from ttt.eval.sounds import Comparison, compare, prompt_codes
from ttt.interfaces import Codec, Judge, Metric, Normalizer, SpeakerEncoder
from ttt.io.atomic import write_json_lines
from ttt.io.json_output import plain
from ttt.registry import name_of
from ttt.registry.families import METRIC
from ttt.types import AudioCodes, Example, Waveform

log = logging.getLogger(__name__)
_BATCH = 32  # waveforms decoded and transcribed together


@dataclass(frozen=True)
class Generated:
    """One generation record; ``codes`` i32 [F, Q], ``where`` its file and line."""

    uid: str
    task: str
    split: str
    text: str
    codes: np.ndarray
    calls: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    first_block_s: float | None = None
    stopped: str = ""
    n_tokens: int = 0
    forced: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    where: str = "generation"

    @classmethod
    def from_json(cls, record: Any, where: str) -> Generated:
        """Check one line; raises `DataError` naming ``where`` and the field."""
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: expected an object, got {type(record).__name__}")
        for name, kind in (("uid", str), ("task", str), ("text", str), ("codes", list)):
            if not isinstance(record.get(name), kind):
                raise DataError(
                    f"{where}: {name!r} must be {kind.__name__}, got {record.get(name)!r:.60}; decode again"
                )
        try:
            codes = np.asarray(record["codes"], dtype=np.int32)
            codes = codes.reshape(len(codes), -1) if codes.size else np.zeros((0, 1), dtype=np.int32)
            first = record.get("first_block_s")
            return cls(
                uid=record["uid"],
                task=record["task"],
                split=str(record.get("split", "")),
                text=record["text"],
                codes=codes,
                calls={str(k): int(v) for k, v in record.get("calls", {}).items()},
                seconds=float(record.get("seconds", 0.0)),
                first_block_s=None if first is None else float(first),
                stopped=str(record.get("stopped", "")),
                n_tokens=int(record.get("n_tokens", 0)),
                forced={str(k): (float(a), float(n)) for k, (a, n) in record.get("forced", {}).items()},
                where=where,
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where}: not a generation record: {error}; decode again") from error


def read_generations(*paths: str | Path) -> list[Generated]:
    """All records of some files, in order."""
    return [Generated.from_json(record, where) for path in paths for where, record in read_records(path)]


def score(
    records: Sequence[Generated],
    examples: Sequence[Example],
    judge: Judge | None,
    codec: Codec | None,
    normalizer: Normalizer,
    metrics_by_task: Mapping[str, Mapping[str, Any]],
    out: str | Path,
    *,
    speaker: SpeakerEncoder | None = None,
    recordings: Recordings | None = None,
    floor: bool = False,
    samples: int = 10,
    resamples: int = 1000,
    seed: int = 1,
    limited: str = "",
    tensorboard: str | Path | None = None,
    step: int = 0,
) -> dict[str, Any]:
    """Score generations against their examples, one to one; groups are (split, task).

    ``metrics_by_task``: task label -> {name in the report: registered metric, or a block of one}.  Writes
    ``out/items.jsonl`` (every item: texts, what was heard, statistics) and, of the first ``samples`` spoken items of
    each group, ``out/samples/{split}/{task}/{uid}.wav`` and ``.png``; with ``tensorboard`` the same goes to that log
    folder.  With ``floor`` metrics of sound are also given for the true answers, through the codec: ``asr/floor_judged_wer``,
    what a perfect model would get.  Metrics that compare with the true sound take it from ``recordings`` where these hold all
    answers of a group, else they take the true codes through the codec; `metric_id` says which.  Returns {"metrics":
    {"asr/wer": {value, low, high, n, metric_id, ...}}, "by_kind", "counts", "timing", "judge", "codec", "normalizer",
    "limited"}: what `ttt.eval.cards.make_card` takes.
    """
    started = time.perf_counter()
    out = Path(out)
    pairs = _match(records, examples)
    metrics = _build(metrics_by_task, {e.task for e in examples})
    judge, codec, speaker = _ready(judge, codec, speaker, pairs, metrics)
    splits = {e.uid: str(e.meta.get("split") or r.split) for e, r in pairs}
    groups: dict[tuple[str, str], list[int]] = {}
    for i, (example, _) in enumerate(pairs):
        groups.setdefault((splits[example.uid], example.task), []).append(i)
    shown = {i for mine in groups.values() for i in [j for j in mine if len(pairs[j][1].codes)][:samples]}
    original = _originals(groups, pairs, metrics, recordings or Recordings())

    def recorded(example: Example) -> Waveform | None:
        if recordings is None or not original[splits[example.uid], example.task] or codec is None:
            return None
        return recordings.answer(example, codec.frame_rate_hz)

    heard, sounds, waves, timing = _listen(pairs, judge, codec, speaker, metrics, shown, recorded)
    rivals = _rivals(examples)
    rows = [
        _scored(e, r, splits[e.uid], heard[i], sounds[i], codec, normalizer, rivals.get(e.task, ()))
        for i, (e, r) in enumerate(pairs)
    ]
    names = _names(judge, codec, normalizer, speaker)
    result: dict[str, Any] = {"metrics": {}, "by_kind": {}, "counts": {}, **names, "limited": limited}
    statistics: list[dict[str, np.ndarray]] = [{} for _ in rows]
    for (split, task), mine in groups.items():
        at = key_prefix(split) + task
        for name, metric in metrics[task].items():
            found = {i: s for i in mine if (s := metric.item(rows[i])) is not None}
            for i, s in found.items():
                statistics[i][name] = s
            identity = _identity(metric, names, original[split, task])
            entry = _entry(metric, identity, list(found.values()), resamples, seed, f"{at}/{name}")
            result["metrics"][f"{at}/{name}"] = {**entry, "split": split, "task": task}
            kinds = _by_kind(metric, found, [e for e, _ in pairs])
            if len(kinds) > 1:
                result["by_kind"][f"{at}/{name}"] = kinds
        result["counts"][at] = _counts([pairs[i][1] for i in mine], [rows[i] for i in mine])
    if floor:
        true = [(e, replace(r, codes=c)) for e, r in pairs if (c := samples_of.reference_codes(e)) is not None]
        heard, sounds, _, _ = _listen(true, judge, codec, speaker, metrics, set(), recorded)
        ideal = [
            _scored(e, r, splits[e.uid], heard[i], sounds[i], codec, normalizer, rivals.get(e.task, ()))
            for i, (e, r) in enumerate(true)
        ]
        result["metrics"] |= _floors(ideal, metrics, names, original, resamples, seed)
    files = samples_of.write_samples(out, waves, [e for e, _ in pairs], rows, codec) if waves else {}
    _write_items(out / "items.jsonl", pairs, rows, statistics, metrics, files)
    timing["items"] = len(pairs)
    timing["score_s"] = time.perf_counter() - started
    result["timing"] = {k: round(v, 3) for k, v in timing.items()}
    if tensorboard is not None:
        samples_of.log_to_tensorboard(Path(tensorboard), step, result["metrics"], rows, waves, files, out)
    log.info("score: %d items in %.1f s -> %s", len(pairs), timing["score_s"], out)
    return result


def _match(records: Sequence[Generated], examples: Sequence[Example]) -> list[tuple[Example, Generated]]:
    """Examples with their generations, in the examples' order; exactly one each."""
    if not examples:
        raise DataError("score: no examples to score; check eval.examples")
    wanted: dict[str, Example] = {}
    for example in examples:
        if example.uid in wanted:
            raise DataError(f"score: example uid {example.uid!r} occurs twice; give every example its own")
        wanted[example.uid] = example
    found: dict[str, Generated] = {}
    for record in records:
        if record.uid not in wanted:
            raise DataError(
                f"{record.where}: uid {record.uid!r} is not among the {len(wanted)} examples; decode these again, "
                "or score with the limit they were decoded with"
            )
        if record.uid in found:
            raise DataError(
                f"{record.where}: uid {record.uid!r} was already generated at {found[record.uid].where}; keep one"
            )
        if record.task != wanted[record.uid].task:
            raise DataError(
                f"{record.where}: uid {record.uid!r} is task {record.task!r} here and "
                f"{wanted[record.uid].task!r} in the examples; decode again"
            )
        found[record.uid] = record
    missing = [uid for uid in wanted if uid not in found]
    if missing:
        files = ", ".join(sorted({r.where.rpartition(":")[0] or r.where for r in records})) or "no generations"
        raise DataError(
            f"{files}: no generation for {len(missing)} of {len(wanted)} examples, first {missing[0]!r}; decode them, "
            "or score with the same limit"
        )
    return [(example, found[uid]) for uid, example in wanted.items()]


def _build(metrics_by_task: Mapping[str, Mapping[str, Any]], tasks: set[str]) -> dict[str, dict[str, Metric]]:
    for task in sorted(tasks):
        if task not in metrics_by_task:
            raise ConfigError(f"tasks: examples are of task {task!r}, known are {', '.join(metrics_by_task) or 'none'}")
    return {
        task: {name: METRIC.build(node, f"tasks.{task}.metrics.{name}") for name, node in metrics_by_task[task].items()}
        for task in sorted(tasks)
    }


def _ready(
    judge: Judge | None, codec: Codec | None, speaker: SpeakerEncoder | None, pairs: Sequence[tuple[Example, Generated]],
    metrics: Mapping[str, Mapping[str, Metric]],
) -> tuple[Judge | None, Codec | None, SpeakerEncoder | None]:  # fmt: skip
    for task, mine in metrics.items():
        for name, metric in mine.items():
            for needed, given in (("judge", judge), ("speaker", speaker)):
                if needed in rests_on(metric) and given is None:
                    raise ConfigError(f"{needed}: missing; metric {name!r} of task {task!r} needs one")
    spoken = next((r for _, r in pairs if len(r.codes)), None)
    if spoken is not None and codec is None:
        raise ConfigError(f"codec: missing; {spoken.where} holds speech")
    if judge is not None and not getattr(judge, "judge_id", ""):
        judge = judge.load()
    if codec is not None and not getattr(codec, "codec_id", ""):
        codec = codec.load()
    if speaker is not None and not getattr(speaker, "speaker_id", ""):
        speaker = speaker.load()
    if codec is not None:
        for _, record in pairs:
            ids = record.codes
            if len(ids) and (ids.shape[1] != codec.num_codebooks or ids.min() < 0 or ids.max() >= codec.num_codes):
                raise DataError(
                    f"{record.where}: codes must be [F, {codec.num_codebooks}] in 0 .. {codec.num_codes - 1} for codec "
                    f"{codec.codec_id!r}, got {list(ids.shape)} with {ids.min()} .. {ids.max()}"
                )
    return judge, codec, speaker


def _originals(
    groups: Mapping[tuple[str, str], Sequence[int]], pairs: Sequence[tuple[Example, Generated]],
    metrics: Mapping[str, Mapping[str, Metric]], recordings: Recordings,
) -> dict[tuple[str, str], bool]:  # fmt: skip
    """Group -> are all its answers compared with recordings?  One ruler a group: else none of them is."""
    found = {}
    for (split, task), mine in groups.items():
        asked = any("reference" in rests_on(m) for m in metrics[task].values())
        spoken = [e for e in (pairs[i][0] for i in mine) if samples_of.reference_codes(e) is not None] if asked else []
        found[split, task] = bool(spoken) and all(recordings.holds(e) for e in spoken)
        if spoken and not found[split, task]:
            log.info(
                "score: %s%s: no recordings of all answers; compared with their codes through the codec",
                key_prefix(split),
                task,
            )
    return found


def _identity(metric: Metric, names: Mapping[str, str], original: bool) -> str:
    reference = "recording" if original else "codec"
    return metric_id(metric, names["judge"], names["normalizer"], names["speaker"], reference)


def _listen(
    pairs: Sequence[tuple[Example, Generated]], judge: Judge | None, codec: Codec | None, speaker: SpeakerEncoder | None,
    metrics: Mapping[str, Mapping[str, Metric]], shown: set[int], recorded: Callable[[Example], Waveform | None],
) -> tuple[list[str | None], list[Comparison], dict[int, Waveform], dict[str, float]]:  # fmt: skip
    """Transcripts ("" for answers without speech, None where nobody listens), comparisons, kept waves, and times.

    Waves are made and heard in batches of similar length; only those to be shown are kept.  ``recorded``: the true sound of an
    answer, or None where it is to be made of the true codes.
    """
    judged = {task for task, mine in metrics.items() if any("judge" in rests_on(m) for m in mine.values())}
    compared = {task for task, mine in metrics.items() if any(getattr(m, "compares", False) for m in mine.values())}
    heard: list[str | None] = [("" if e.task in judged else None) for e, _ in pairs]
    sounds = [Comparison()] * len(pairs)
    waves: dict[int, Waveform] = {}
    timing = {"decode_s": sum(r.seconds for _, r in pairs), "codec_s": 0.0, "judge_s": 0.0, "audio_s": 0.0}
    if codec is None:  # then nothing is spoken (`_ready`)
        return heard, sounds, waves, timing

    def decode(codes: Sequence[np.ndarray]) -> list[Waveform]:
        begun = time.perf_counter()
        made = codec.decode([AudioCodes(c, codec.frame_rate_hz, codec.codec_id) for c in codes])
        timing["codec_s"] += time.perf_counter() - begun
        return made

    def wave_of(codes: np.ndarray | None) -> Waveform | None:
        return decode([codes])[0] if codes is not None and len(codes) else None

    def truth(example: Example) -> Waveform | None:
        codes = samples_of.reference_codes(example)
        sound = recorded(example) if codes is not None and len(codes) else None
        return wave_of(codes) if sound is None else sound

    order = sorted(
        (
            i for i, (e, r) in enumerate(pairs)
            if e.task in compared or (len(r.codes) and (e.task in judged or i in shown))
        ),
        key=lambda i: (len(pairs[i][1].codes), i),
    )  # fmt: skip
    for at in range(0, len(order), _BATCH):
        batch = order[at : at + _BATCH]
        spoken = [i for i in batch if len(pairs[i][1].codes)]
        made = dict(zip(spoken, decode([pairs[i][1].codes for i in spoken]), strict=True)) if spoken else {}
        timing["audio_s"] += sum(w.duration_s for w in made.values())
        waves |= {i: w for i, w in made.items() if i in shown}
        mine = [(i, w) for i, w in made.items() if pairs[i][0].task in judged]
        if mine:
            assert judge is not None
            begun = time.perf_counter()
            for (i, _), text in zip(mine, judge.transcribe([w for _, w in mine]), strict=True):
                heard[i] = text
            timing["judge_s"] += time.perf_counter() - begun
        both = [i for i in batch if pairs[i][0].task in compared]
        silence = Waveform(np.zeros(0, dtype=np.float32), codec.rate_hz)
        found = compare(
            [made.get(i, silence) for i in both],
            [truth(pairs[i][0]) for i in both],
            [wave_of(prompt_codes(pairs[i][0])) for i in both],
            speaker,
        )
        for i, one in zip(both, found, strict=True):
            sounds[i] = one
    return heard, sounds, {i: waves[i] for i in sorted(waves)}, timing


def _scored(
    example: Example, record: Generated, split: str, heard: str | None, sound: Comparison, codec: Codec | None,
    normalizer: Normalizer, rivals: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """The mapping that `Metric.item` gets (keys: `ttt.eval.metrics`)."""
    meta, codes = example.meta, samples_of.reference_codes(example)
    answered = example.turns[-1].role == "assistant"
    spoken = codes is not None if answered else meta.get("speech_ref") is not None
    rate_hz = codec.frame_rate_hz if codec is not None else float("nan")
    audio_s = (len(record.codes) / rate_hz if len(record.codes) else 0.0) if spoken else None
    return {
        "uid": example.uid, "task": example.task, "split": split, "text": record.text, "text_ref": meta.get("text_ref"),
        "answer_key": meta.get("answer_key"), "distractors": meta.get("distractors") or rivals,
        "judged_text": heard if spoken else None, "speech_ref": meta.get("speech_ref"), "audio_s": audio_s,
        "ref_audio_s": len(codes) / rate_hz if codes is not None and codec is not None else None,
        "seconds": record.seconds, "first_block_s": record.first_block_s, "calls": record.calls,
        "forced": record.forced, "mel_distance_db": sound.mel_distance_db if spoken else None,
        "speaker_similarity": sound.speaker_similarity if spoken else None, "normalize": normalizer.normalize,
    }  # fmt: skip


def _rivals(examples: Sequence[Example]) -> dict[str, list[str]]:
    """Task -> all its answer keys: what counts as another answer where an item lists no distractors."""
    keys: dict[str, dict[str, None]] = {}
    for example in examples:
        if example.meta.get("answer_key"):
            keys.setdefault(example.task, {})[str(example.meta["answer_key"])] = None
    return {task: list(found) for task, found in keys.items()}


def _names(
    judge: Judge | None, codec: Codec | None, normalizer: Normalizer, speaker: SpeakerEncoder | None
) -> dict[str, str]:  # fmt: skip
    return {
        "judge": judge.judge_id if judge is not None else "",
        "codec": codec.codec_id if codec is not None else "",
        "normalizer": name_of(normalizer),
        "speaker": speaker.speaker_id if speaker is not None else "",
    }


def _entry(
    metric: Metric, identity: str, statistics: Sequence[np.ndarray], resamples: int, seed: int, at: str
) -> dict[str, Any]:
    """One metric's line of the card; null where no item or nothing to divide by."""
    better = None if hasattr(metric, "best") else metric.higher_is_better
    about = {"metric_id": identity, "unit": getattr(metric, "unit", "score"), "higher_is_better": better}
    if not statistics:
        return {"value": None, "low": None, "high": None, "n": 0, **about}
    try:
        return plain({**value_to_json(bootstrap(np.stack(statistics), metric.total, resamples, seed)), **about})
    except (ValueError, DataError) as error:
        raise DataError(f"metric {at}: {error}") from error


def _floors(
    rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Mapping[str, Metric]], names: Mapping[str, str],
    original: Mapping[tuple[str, str], bool], resamples: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Lines of the card for metrics of sound whose rows are of the true answers."""
    found: dict[str, Any] = {}
    groups = dict.fromkeys((row["split"], row["task"]) for row in rows)
    for split, task in groups:
        mine = [row for row in rows if (row["split"], row["task"]) == (split, task)]
        for name, metric in metrics[task].items():
            if not metric.needs_audio:
                continue
            key = f"{key_prefix(split)}{task}/floor_{name}"
            identity = _identity(metric, names, original[split, task])
            statistics = [s for row in mine if (s := metric.item(row)) is not None]
            found[key] = {**_entry(metric, identity, statistics, resamples, seed, key), "split": split, "task": task}
    return found


def _by_kind(metric: Metric, found: Mapping[int, np.ndarray], examples: Sequence[Example]) -> dict[str, Any]:
    """Value and n by the example's ``meta["kind"]``."""
    kinds: dict[str, list[np.ndarray]] = {}
    for i, s in found.items():
        kinds.setdefault(str(examples[i].meta.get("kind") or ""), []).append(s)
    return {
        kind: plain({"value": metric.total(np.sum(rows, axis=0)), "n": len(rows)})
        for kind, rows in sorted(kinds.items())
    }


def _counts(records: Sequence[Generated], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What happened to a group's answers: why they stopped, how many are silent or speak unasked."""
    return {
        "items": len(records),
        "stopped": dict(Counter(r.stopped or "unknown" for r in records)),
        "no_text": sum(not r.text.strip() for r in records),
        "no_speech": sum(row["audio_s"] == 0 for row in rows),
        "unasked_speech": sum(row["audio_s"] is None and len(r.codes) > 0 for r, row in zip(records, rows)),
    }


def _write_items(
    path: Path, pairs: Sequence[tuple[Example, Generated]], rows: Sequence[Mapping[str, Any]],
    statistics: Sequence[Mapping[str, np.ndarray]], metrics: Mapping[str, Mapping[str, Metric]],
    files: Mapping[int, Mapping[str, str]],
) -> None:  # fmt: skip
    """Every item with its texts, statistics and own scores; complete or not at all."""

    def item_of(i: int, example: Example, record: Generated, own: Mapping[str, np.ndarray]) -> dict[str, Any]:
        item = {k: v for k, v in rows[i].items() if k not in ("normalize", "distractors", "forced")}
        item["calls"] = dict(record.calls)
        item |= {"kind": example.meta.get("kind", ""), "stopped": record.stopped, "n_tokens": record.n_tokens}
        item["scores"] = {name: metrics[example.task][name].total(s) for name, s in own.items()}
        item["statistics"] = dict(own)
        return plain({**item, **files.get(i, {})})

    write_json_lines(path, (item_of(i, *pair, own) for i, (pair, own) in enumerate(zip(pairs, statistics, strict=True))))
