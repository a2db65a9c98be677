"""The judge's own errors, by group of voices."""

from __future__ import annotations

import json

import pytest

from ttt.audio.wav import write
from ttt.data.manifest import Utterance, write_manifest
from ttt.errors import DataError
from ttt.eval.measure_floor import measure_floor, read_floor
from ttt.eval.normalizers import Words
from ttt.types import AudioCodes


@pytest.fixture
def manifests(fakes, tmp_path):
    """Test: voices f1 and out; unseen: f3 and the same out utterance."""
    said = {
        "test": [("f1", "one two"), ("out", "seven two"), ("f1", "three four five six")],
        "test_unseen_voice": [("f3", "seven seven"), ("out", "seven two")],
    }
    paths = []
    for split, utterances in said.items():
        lines = []
        for voice, text in utterances:
            wave = fakes.codec.decode([AudioCodes(fakes.spoken(text), 10.0, "")])[0]
            name = f"{voice}-{text.replace(' ', '_')}"
            write(tmp_path / "wav" / f"{name}.wav", wave)
            lines.append(Utterance(name, f"wav/{name}.wav", text, wave.duration_s, voice, split))
        write_manifest(tmp_path / f"{split}.jsonl", lines)
        paths.append(tmp_path / f"{split}.jsonl")
    return paths


def test_groups_by_hand(fakes, manifests, tmp_path):
    judge = fakes.ToneJudge(deaf_to="seven")
    floor = measure_floor(manifests, fakes.codec, judge, Words(), tmp_path / "floor.json", resamples=50)
    values = {k: (v["value"], v["n"]) for k, v in floor["values"].items()}
    assert values["judge/wer"] == (pytest.approx(1 / 8), 3)
    assert values["judge/wer_out"] == values["codec/floor_wer"] == (0.5, 1)
    assert values["unseen_voice/judge/wer"] == values["unseen_voice/codec/floor_wer"] == (1.0, 1)  # f3 alone
    assert floor["groups"]["test_unseen_voice"]["all"]["original"]["value"] == pytest.approx(3 / 4)
    assert floor["voices"]["test"]["f1"]["resynthesized"]["value"] == 0.0
    assert judge.heard == 2 * 4  # the utterance in both manifests is heard once
    assert read_floor(tmp_path / "floor.json") == floor
    items = [json.loads(line) for line in (tmp_path / "floor.items.jsonl").read_text().splitlines()]
    assert len(items) == 5 and items[1]["original"] == "two"


def test_limit_is_stated(fakes, manifests, tmp_path):
    floor = measure_floor(manifests, fakes.codec, fakes.judge, Words(), tmp_path / "floor.json", 1, resamples=20)
    assert floor["values"]["judge/wer"]["n"] == 1 and "judge/wer_out" not in floor["values"]
    assert floor["limited"] == "first 1 utterances of each manifest"


def test_refusals(fakes, tmp_path):
    with pytest.raises(DataError, match="no manifests"):
        measure_floor([], fakes.codec, fakes.judge, Words(), tmp_path / "floor.json")
    write(tmp_path / "a.wav", fakes.codec.decode([AudioCodes(fakes.spoken("one"), 10.0, "")])[0])
    write_manifest(tmp_path / "test.jsonl", [Utterance("a", "a.wav", "", 1.0, "f1", "test")])
    with pytest.raises(DataError, match=r"utterance 'a' has no text, which the judge's floor \(.*test.jsonl\) reads"):
        measure_floor([tmp_path / "test.jsonl"], fakes.codec, fakes.judge, Words(), tmp_path / "floor.json")
    with pytest.raises(DataError, match="floor.json: no such file; run 'ttt floor'"):
        read_floor(tmp_path / "floor.json")
    (tmp_path / "floor.json").write_text('{"format": "x"}')
    with pytest.raises(DataError, match="not a floor of format"):
        read_floor(tmp_path / "floor.json")
