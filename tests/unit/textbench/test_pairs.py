"""Minimal pairs: published layouts in small, and accuracies of a model that knows which codes are likely."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from tests.conftest import tiny_model, tiny_tokenizer
from tests.tiny_runs import make_run
from ttt.audio.codecs.toy import Toy
from ttt.audio.wav import write
from ttt.cli.main import main
from ttt.errors import DataError
from ttt.likelihood import Draws
from ttt.masks.library import Causal, Full
from ttt.objective.library import Ar, Nar
from ttt.textbench.pair_sets import MinimalPair, read_pairs
from ttt.textbench.pairs import PairScore, score_pairs, summarize
from ttt.types import AudioCodes, Span

LIKELY, RARE = [1, 2, 3, 4], [10, 11, 12, 13]


def say(path, codes=LIKELY):
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = Toy()
    (wave,) = codec.decode([AudioCodes(np.asarray(codes, dtype=np.int32)[:, None], codec.frame_rate_hz, codec.codec_id)])
    write(path, wave)


def gold(folder, rows):
    for row in rows:
        say(folder / f"{row['filename']}.wav", LIKELY if row["correct"] else RARE)
    with (folder / "gold.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def names(path):
    return [(p.group, p.id, p.positive.file.name, p.negative.file.name) for p in read_pairs(path)[0]]


def test_zerospeech(tmp_path):
    words = [{"id": n, "filename": f"f{n}{v}{c}", "voice": v, "frequency": "" if n else 7, "word": "w", "correct": c}
             for n in (0, 1) for v in "AB" for c in (0, 1)]  # fmt: skip
    gold(tmp_path / "lexical/dev", words)
    gold(tmp_path / "syntactic/dev", [
        {"id": 1, "filename": f"s{c}", "voice": "A", "type": "agreement", "subtype": "x", "correct": c} for c in (1, 0)
    ])  # fmt: skip
    assert names(tmp_path) == [
        *[("lexical/dev/in_vocabulary", "0", f"f0{v}1.wav", f"f0{v}0.wav") for v in "AB"],
        *[("lexical/dev/oov", "1", f"f1{v}1.wav", f"f1{v}0.wav") for v in "AB"],
        ("syntactic/dev/agreement", "1", "s1.wav", "s0.wav"),
    ]
    (tmp_path / "lexical/dev/f0A1.wav").unlink()
    with pytest.raises(DataError, match=r"gold.csv:3: .*f0A1.wav: no such file"):
        read_pairs(tmp_path)


def test_layouts_told_by_names(tmp_path):
    for name in ("sample_3_0.wav", "sample_3_1.wav", "sample_12_0.wav", "sample_12_1.wav"):
        say(tmp_path / "salmon/rir_consistency" / name)
    assert names(tmp_path / "salmon") == [
        ("rir_consistency", "3", "sample_3_0.wav", "sample_3_1.wav"),
        ("rir_consistency", "12", "sample_12_0.wav", "sample_12_1.wav"),
    ]
    for name in ("0_a.wav", "1_b.wav", "10_d.wav", "9_c.wav"):
        say(tmp_path / "numbered" / name)
    assert names(tmp_path / "numbered") == [("numbered", "0", "0_a.wav", "1_b.wav"), ("numbered", "1", "9_c.wav", "10_d.wav")]
    for name in ("4_correct.wav", "4_incorrect.wav"):
        say(tmp_path / "story" / name)
    assert names(tmp_path / "story") == [("story", "4", "4_correct.wav", "4_incorrect.wav")]
    say(tmp_path / "story/5_x.wav")
    say(tmp_path / "story/5_y.wav")
    with pytest.raises(DataError, match="5_x.wav and 5_y.wav: which is right"):
        read_pairs(tmp_path / "story")


def test_salmon_parquet_and_lines(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    say(tmp_path / "a.wav")
    sound = {"bytes": (tmp_path / "a.wav").read_bytes(), "path": "a.wav"}
    rows = [{"task": "bg_alignment", "ind": n, "positive_audio": sound, "negative_audio": sound} for n in range(2)]
    (tmp_path / "hub").mkdir()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "hub/train-00000-of-00001.parquet")
    pairs, _ = read_pairs(tmp_path / "hub")
    assert [(p.group, p.id, str(p.negative).rpartition("#")[2]) for p in pairs] == [
        ("bg_alignment", "0", "row=0,negative_audio"), ("bg_alignment", "1", "row=1,negative_audio"),
    ]  # fmt: skip
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"id": 1, "group": "g", "positive": "a.wav", "negative": [3, 4]}\n{"positive": "a cat", "negative": "b"}\n')
    first, second = read_pairs(lines)[0]
    assert first.positive.file == tmp_path / "a.wav" and first.negative[:, 0].tolist() == [3, 4]
    assert (second.positive, second.negative, second.group, second.id) == ("a cat", "b", "pairs", "x.jsonl:2")
    lines.write_text('{"positive": "no.wav", "negative": "b"}\n')
    with pytest.raises(DataError, match="x.jsonl:1, positive: .*no.wav: no such file"):
        read_pairs(lines)


def test_no_pairs_and_unknown_scores_are_said_in_one_line(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("")
    run = str(make_run(tmp_path / "run", "ar"))
    for given, says in (([], "x.jsonl: holds no pair"), (["--score", "mean"], "score: no 'mean'. Choices: token, total")):
        assert main(["eval", "pairs", str(tmp_path / "x.jsonl"), "--model", run, "--out", str(tmp_path / "out"), *given]) == 2
        assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("objective", [Ar(mask=Causal()), Nar(mask=Full())], ids=["ar", "nar"])
def test_a_model_that_knows(objective):
    vocab = tiny_tokenizer().vocab
    model = tiny_model(bias={vocab.code_start + c: 4.0 for c in LIKELY}).eval()
    array = [np.asarray(c, dtype=np.int32)[:, None] for c in (LIKELY, RARE, LIKELY * 3)]
    pairs = [MinimalPair("1", "a", array[0], array[1]), MinimalPair("1", "a", array[1], array[0]),
             MinimalPair("2", "a", array[0], array[1]), MinimalPair("1", "b", array[2], array[1])]  # fmt: skip

    def encode(sides):
        return [Span("audio", codes=side, style="open_last") for side in sides]

    for form in ("document", "answer"):
        found = score_pairs(model, objective, pairs, encode, PairScore(form=form), Draws(8, "spread", 4), 1, 512)
        assert {r["uid"]: r["statistics"]["acc"] for r in found} == {"a/1": [0.5, 1.0], "a/2": [1.0, 1.0], "b/1": [1.0, 1.0]}
        values = summarize(found, 50)
        assert values["a/acc"]["value"] == 0.75 and values["acc"]["value"] == pytest.approx(2.5 / 3)
        side = found[0]["pairs"][0]["positive"]
        assert side["tokens"] == len(LIKELY) + (form == "answer" or isinstance(objective, Nar))
        assert side["bound"] == isinstance(objective, Nar)
    # twelve likely codes are less likely than four rare ones in total, not per token
    model = tiny_model(bias={vocab.code_start + c: 0.5 for c in LIKELY}).eval()
    by = {per: score_pairs(model, objective, pairs[3:], encode, PairScore(per), Draws(8, "spread", 4), 1, 512) for per in
          ("token", "total")}  # fmt: skip
    assert [by[per][0]["statistics"]["acc"][0] for per in ("token", "total")] == [1.0, 0.0]


def test_the_verb(tmp_path, capsys):
    run = make_run(tmp_path / "run", "ar")
    for n in range(4):
        say(tmp_path / f"story/{n}_correct.wav", [n, n + 1, n, 5])
        say(tmp_path / f"story/{n}_incorrect.wav", [n + 7, 9, n, n + 1])
    call = ["eval", "pairs", str(tmp_path / "story"), "--model", str(run)]
    assert main([*call, "--dry-run"]) == 0 and capsys.readouterr().out.endswith("story: 4 pairs\n")
    assert main(call) == 0
    assert "story" in capsys.readouterr().out
    card = json.loads((run / "eval/pairs/card.json").read_text())
    assert card["metrics"]["story/acc"]["n"] == 4 and 0 <= card["metrics"]["story/acc"]["value"] <= 1
    items = [json.loads(line) for line in (run / "eval/pairs/questions.jsonl").read_text().splitlines()]
    assert len(items) == 4 and items[0]["pairs"][0]["positive"]["tokens"] == 4
    assert main([*call, "--score", "sum"]) == 2 and "token" in capsys.readouterr().err
    assert main([*call, "codec=null", "--overwrite"]) == 2 and "codec: none is configured" in capsys.readouterr().err
