"""The floor of judged error rates: the judge's word error rate on true recordings, before and after the codec (``ttt floor``).

A judged error rate of a model can only be read against these: ``judge/wer`` is the judge's own error on original speech,
``codec/floor_wer`` its error on the same speech through the codec, which is the best a perfect model can reach.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttt.audio.loading import load_plugin
from ttt.audio.recordings import Recordings
from ttt.data.manifest import Utterance, read_manifest, wav_path
from ttt.errors import DataError
from ttt.eval.cards import check_entry, key_prefix, value_to_json
from ttt.eval.intervals import bootstrap
from ttt.eval.metrics import JudgedWer, word_edits
from ttt.interfaces import Codec, Judge, Normalizer
from ttt.io.atomic import write_json, write_json_lines
from ttt.io.json_input import read_json
from ttt.io.json_output import plain
from ttt.registry import name_of
from ttt.types import Waveform

log = logging.getLogger(__name__)
FORMAT = "ttt-floor-1"
OUTPUT_VOICE = "out"
_BATCH = 32


def measure_floor(
    manifests: Sequence[str | Path],
    codec: Codec,
    judge: Judge,
    normalizer: Normalizer,
    out: str | Path,
    limit: int = 0,
    *,
    output_voice: str = OUTPUT_VOICE,
    resamples: int = 1000,
    seed: int = 1,
) -> dict[str, Any]:
    """Error rates by split and group of voices; writes ``out`` (JSON) and ``*.items.jsonl`` beside it.

    Groups of a manifest: ``all`` its voices, ``out`` (the voice that models speak in) and ``input`` (all but ``out``).
    ``values`` holds the keys of the report.  Of the split ``test``: ``judge/wer`` and ``codec/floor_wer_all`` over all
    voices, ``judge/wer_out`` and ``codec/floor_wer`` over the output voice (the one models speak in).
    Of any other split, with its prefix: ``judge/wer`` and ``codec/floor_wer`` over its ``input`` voices, because its output
    voice is the one of ``test``.
    ``limit``: utterances per manifest.
    """
    started = time.perf_counter()
    if not manifests:
        raise DataError("floor: no manifests; name the test splits")
    codec = codec if getattr(codec, "codec_id", "") else load_plugin(codec, "codec")
    judge = judge if getattr(judge, "judge_id", "") else load_plugin(judge, "judge")
    chosen: list[tuple[str, Utterance, Path]] = []
    for manifest in manifests:
        utterances = read_manifest(manifest)
        kept = utterances[:limit] if limit else utterances
        for u in kept:
            u.need_text(f"the judge's floor ({manifest})")
        chosen += [(u.split, u, wav_path(manifest, u).resolve()) for u in kept]
    heard = _transcribe({path: u for _, u, path in chosen}, codec, judge)
    rows = [_row(split, u, *heard[path], normalizer) for split, u, path in chosen]
    groups: dict[str, Any] = {}
    voices: dict[str, Any] = {}
    for split in dict.fromkeys(row["split"] for row in rows):
        of_split = [row for row in rows if row["split"] == split]
        parts = {
            "all": of_split,
            "out": [row for row in of_split if row["speaker"] == output_voice],
            "input": [row for row in of_split if row["speaker"] != output_voice],
        }
        groups[split] = {name: _rates(part, resamples, seed) for name, part in parts.items() if part}
        voices[split] = {
            v: _rates([row for row in of_split if row["speaker"] == v], resamples, seed)
            for v in sorted({row["speaker"] for row in of_split})
        }
    name = name_of(normalizer)
    result = plain(
        {
            "format": FORMAT, "judge": judge.judge_id, "codec": codec.codec_id, "normalizer": name,
            "metric_id": f"judged_wer[{judge.judge_id},{name}]", "output_voice": output_voice,
            "limited": f"first {limit} utterances of each manifest" if limit else "", "values": _values(groups),
            "groups": groups, "voices": voices, "seconds": round(time.perf_counter() - started, 2),
        }
    )  # fmt: skip
    out = Path(out)
    write_json_lines(out.with_name(f"{out.stem}.items.jsonl"), map(plain, rows))
    write_json(out, result)
    for key, value in result["values"].items():
        log.info("floor: %s %.4f [%.4f, %.4f] n=%d", key, value["value"], value["low"], value["high"], value["n"])
    return result


def read_floor(path: str | Path) -> dict[str, Any]:
    """Read what `measure_floor` wrote, with checks."""
    path = Path(path)
    floor = read_json(path, "run 'ttt floor'")
    if floor.get("format") != FORMAT or not isinstance(floor.get("values"), Mapping):
        raise DataError(f"{path}: not a floor of format {FORMAT!r}; run 'ttt floor' again")
    for key, entry in floor["values"].items():
        check_entry(entry, f"{path}: values[{key!r}]")
    return dict(floor)


def _transcribe(recordings: Mapping[Path, Utterance], codec: Codec, judge: Judge) -> dict[Path, tuple[str, str]]:
    """Wav -> (heard in the original, heard in the resynthesis); each wav once, in batches of similar length."""
    order = sorted(recordings, key=lambda path: (recordings[path].duration_s, str(path)))
    heard: dict[Path, tuple[str, str]] = {}
    reader = Recordings(codec.encode_rate_hz)
    for at in range(0, len(order), _BATCH):
        batch = order[at : at + _BATCH]
        waves: list[Waveform] = [reader.read(path) for path in batch]
        before = judge.transcribe(waves)
        after = judge.transcribe(codec.decode(codec.encode(waves)))
        heard |= {path: (a, b) for path, a, b in zip(batch, before, after, strict=True)}
    if reader.summary():
        log.info("floor: %s", reader.summary())
    return heard


def _row(split: str, u: Utterance, original: str, again: str, normalizer: Normalizer) -> dict[str, Any]:
    reference = normalizer.normalize(u.text)
    return {
        "id": u.id, "split": split, "speaker": u.speaker, "text": u.text, "original": original, "resynthesized": again,
        "original_edits": word_edits(reference, normalizer.normalize(original)),
        "resynthesized_edits": word_edits(reference, normalizer.normalize(again)),
    }  # fmt: skip


def _rates(rows: Sequence[Mapping[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    metric = JudgedWer()
    return {
        speech: value_to_json(
            bootstrap(
                np.array([row[f"{speech}_edits"] for row in rows], dtype=np.float64), metric.total, resamples, seed
            )
        )
        for speech in ("original", "resynthesized")
    }


def _values(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for split, parts in groups.items():
        prefix = key_prefix(split)
        main = parts.get("input", parts["all"]) if prefix else parts["all"]
        values[f"{prefix}judge/wer"] = main["original"]
        values[f"{prefix}codec/floor_wer"] = main["resynthesized"]
        if not prefix and "out" in parts:
            values["codec/floor_wer_all"] = main["resynthesized"]
            values["codec/floor_wer"] = parts["out"]["resynthesized"]
            values["judge/wer_out"] = parts["out"]["original"]
    return values
