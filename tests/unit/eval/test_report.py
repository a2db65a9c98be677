"""The report: keys of report.json, a table of 100 columns, links that lead somewhere, limited runs called so."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ttt.errors import DataError
from ttt.eval.cards import make_card, write_card
from ttt.eval.evaluate import evaluate
from ttt.eval.listen import Instruments
from ttt.eval.normalizers import Words
from ttt.eval.report import build_report
from ttt.eval.report_tables import WIDTH, Row, interval, markdown_table, number, text_table
from ttt.eval.score import Bootstrap
from ttt.io.atomic import write_json

ENTRY = {"value": 0.1, "low": 0.05, "high": 0.2, "n": 40}


@pytest.fixture(scope="module")
def made(shared_fakes, tmp_path_factory):
    """A run folder with one card of two splits, a floor and a training log."""
    fakes = shared_fakes
    folder = tmp_path_factory.mktemp("made") / "mini talk" / "ttt"
    examples = [
        fakes.example(f"{split}-{task}-{i}", task, "one two three", split, key="three" if task == "qa" else None)
        for split in ("test", "test_unseen_voice")
        for task in ("asr", "tts", "qa")
        for i in range(3)
    ]
    records = [fakes.answer(e, "" if e.task == "tts" else "one two three", "one two") for e in examples]
    instruments = Instruments(fakes.judge, fakes.codec, Words())
    evaluation = evaluate(records, examples, fakes.METRICS, instruments, folder / "eval", samples=1, intervals=Bootstrap(20))
    card = make_card(evaluation.result, command=["ttt", "score"], config={"eval": {"note": "quick corpus"}}, seeds={"run": 1})
    write_card(folder / "eval" / "card.json", card)
    keys = (
        "judge/wer",
        "judge/wer_out",
        "codec/floor_wer",
        "codec/floor_wer_all",
        "unseen_voice/judge/wer",
        "unseen_voice/codec/floor_wer",
    )
    rates = {"original": ENTRY, "resynthesized": ENTRY}
    floor = {
        "format": "ttt-floor-1", "judge": "fake-1a2b", "codec": "tones-1", "metric_id": "judged_wer[fake-1a2b,words]",
        "limited": "", "values": dict.fromkeys(keys, ENTRY), "voices": {"test": {"f1": rates}},
    }  # fmt: skip
    write_json(folder / "eval" / "floor.json", floor)
    log = [{"step": s, "train/loss/ar": 1 / s, "train/loss/nar": 2 / s, "train/seconds": 9.0 * s} for s in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "mini talk" / "ttt"))


def test_report_of_a_run(run):
    kind = np.array([1, 2, 2], dtype=np.uint8)
    table = build_report(run, mask=(np.tril(np.ones((3, 3), dtype=bool)), kind))
    values = json.loads((run / "report.json").read_text())
    keys = ("asr/wer", "tts/judged_wer", "qa/accuracy", "qa/spoken_accuracy", "codec/floor_wer", "judge/wer")
    for key in (*keys, *(f"unseen_voice/{k}" for k in keys)):
        assert {"value", "low", "high", "n", "metric_id"} <= set(values[key]), key
    assert values["tts/judged_wer"]["metric_id"] == "judged_wer[fake-1a2b,words]"
    assert values["tts/judged_wer"]["value"] == pytest.approx(1 / 3)
    assert values["about"]["limited"] == "quick corpus" and values["about"]["judge"] == "fake-1a2b"

    assert max(map(len, table.splitlines())) <= WIDTH
    assert "Training: 8 steps in 72 s, train/loss/ar 0.125, train/loss/nar 0.250." in table
    assert "NOT A FULL RUN: quick corpus" in table and "Few items" in table
    for line in (
        "seen voices",
        "unseen voices",
        "codec floor, all voices",
        "codec floor, output voice",
        "judge, original",
    ):
        assert line in table
    row = next(line for line in table.splitlines() if "judged_wer[fake-1a2b,words]" in line)
    assert row.split()[1:] == ["33.3%", "[", "33.3,", "33.3]", "3"] * 2
    assert (run / "report" / "table.txt").read_text() == table + "\n"

    page = (run / "report.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) > 10
    assert all((run / link.replace("%20", " ")).is_file() for link in links), links
    assert "**Not a full run:** quick corpus" in page and "one two three" in page and "`ttt score`" in page
    assert str(run) not in page  # paths in the report are relative
    assert {p.name for p in (run / "report").iterdir()} == {"loss.png", "metrics.png", "mask.png", "table.txt"}


def test_report_without_floor_and_log_says_so(run):
    (run / "eval" / "floor.json").unlink()
    (run / "metrics.jsonl").unlink()
    table = build_report(run)
    assert "No floor" in table and "Training" not in table
    assert "judge/wer" not in json.loads((run / "report.json").read_text())


def test_two_systems_of_one_run_stand_under_their_names(run):
    card = json.loads((run / "eval" / "card.json").read_text())
    write_card(run / "eval" / "fixed" / "card.json", card)
    with pytest.raises(DataError, match="'asr/wer' is also in .*give the cards different names"):
        build_report(run)
    write_card(run / "eval" / "fixed" / "card.json", card | {"name": "fixed"})
    table = build_report(run)
    assert "fixed/unseen_voice/asr/wer" in json.loads((run / "report.json").read_text())
    assert table.count("codec floor, output voice") == 2  # the floor stands in every table


def test_floor_of_another_judge_and_missing_cards_are_refused(run, tmp_path):
    floor = json.loads((run / "eval" / "floor.json").read_text())
    write_json(run / "eval" / "floor.json", floor | {"judge": "other-9"})
    with pytest.raises(DataError, match="measured with judge 'other-9'.*'fake-1a2b'; run 'ttt floor' again"):
        build_report(run)
    with pytest.raises(DataError, match="no result card under eval/"):
        build_report(tmp_path / "nothing")


def test_numbers_keep_their_unit():
    assert number(0.1234, "rate") == "12.3%" and interval(ENTRY, "rate") == "[  5.0,  20.0]"
    assert number(1.5, "s") == "1.500 s" and number(250.0, "1/s") == "250.0/s" and number(None, "s") == "-"


def test_table_with_other_splits_and_missing_cells():
    rows = [
        Row("asr", "wer[words]", "rate", {"": ENTRY, "dev/": ENTRY, "unseen_voice/": ENTRY}, False),
        Row("qa", "accuracy[" + "x" * 60 + "]", "rate", {"": {"value": None, "low": None, "high": None, "n": 0}}, True),
    ]
    text = text_table(rows, "t")
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.count("wer[words]") == 2  # three columns make two blocks
    assert "  accuracy  " in text and "xxx" not in text
    page = markdown_table(rows)
    assert page.splitlines()[0] == "| | metric | seen voices | unseen voices | dev |"
    assert page.splitlines()[-1].endswith("| - | - | - |")
