"""Data in which nothing is learned are refused before training; a part of them is counted."""

import json

import pytest

from tests.conftest import tiny_tokenizer
from ttt.cli.main import main

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "be"}
RECORDS = {
    "user only": {"messages": [USER]},
    "system only": {"messages": [SYSTEM]},
    "system and user": {"messages": [SYSTEM, USER]},
    "history only": {
        "uid": "h",
        "turns": [{"role": "user", "spans": []}, {"role": "assistant", "spans": [{"text": "a"}], "history": True}],
    },
    "ids of a prompt": {"input_ids": [1, 2, 3], "prompt_length": 3},
    "ids without labels": {"input_ids": [1, 2, 3], "labels": [-100, -100, -100]},
}
GOOD = {"messages": [USER, {"role": "assistant", "content": "ho"}]}


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tok")
    tiny_tokenizer().save(folder)
    return folder


def lines(path, *records):
    path.write_text("".join(json.dumps({**r, "id": str(i), "uid": str(i)}) + "\n" for i, r in enumerate(records)))
    return path


def train(tmp_path, tok, data, **settings):
    settings = {
        "run.dir": tmp_path / "run", "data.train": data, "data.tokenizer": tok, "model.preset": "toy", "train.steps": 1,
        "train.tensorboard": False, "run.device": "cpu", "data.row_tokens": 64, "data.batch_tokens": 64, **settings,
    }  # fmt: skip
    return main(["train", *(f"{k}={v}" for k, v in settings.items())])


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
@pytest.mark.parametrize("form", ["file", "store", "mix", "text", "dev"])
def test_refused_before_training(tmp_path, tok, capsys, record, form):
    data = lines(tmp_path / "x.jsonl", record, record)
    settings = {}
    if form == "store":
        assert main(["data", "pack", str(data), "--tokenizer", str(tok), "--out", str(tmp_path / "s")]) == 0
        data = tmp_path / "s"
    elif form == "mix":
        (tmp_path / "m.json").write_text(json.dumps([{"path": str(data)}]))
        data = tmp_path / "m.json"
    elif form in ("text", "dev"):
        settings = {f"data.{form}": data} | ({"data.ratio": 0.5} if form == "text" else {})
        data = lines(tmp_path / "good.jsonl", GOOD, GOOD)
    capsys.readouterr()
    assert train(tmp_path, tok, data, **settings) == 2
    err = capsys.readouterr().err.strip()
    assert "\n" not in err and "nothing to learn in any of its 2 examples" in err
    assert not (tmp_path / "run").exists()


def test_a_part_is_counted(tmp_path, tok, caplog):
    data = lines(tmp_path / "x.jsonl", GOOD, RECORDS["user only"], RECORDS["system only"])
    assert train(tmp_path, tok, data) == 0
    assert "2 of 3 examples hold nothing to learn (no answer and no document), the first is '1'" in caplog.text
