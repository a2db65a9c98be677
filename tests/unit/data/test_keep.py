"""``data.keep``: only the records whose column has one of the named values, in files and in stores."""

from __future__ import annotations

import json
import logging

import pytest

from tests.conftest import tiny_tokenizer
from ttt.cli.main import main
from ttt.config.schema import DataSection
from ttt.data.batches.text_ratio import training_loader, validation_batches
from ttt.data.sources.mix import open_streams
from ttt.errors import DataError

VOICES = ["anna", "ben", None, "anna", "carl", "ben"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six records with a column ``voice``, ``speed`` in ``meta``; one file without either; a tokenizer."""
    path = tmp_path_factory.mktemp("keep")
    tiny_tokenizer().save(path / "tok")
    rows = [{"prompt": "a cat", "response": "on", "voice": voice, "meta": {"speed": i % 2}} for i, voice in enumerate(VOICES)]
    (path / "speech.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "text.jsonl").write_text(json.dumps({"prompt": "a", "response": "on"}) + "\n")
    return path


def uids(folder, keep, name="speech.jsonl"):
    streams = open_streams(folder / name, tiny_tokenizer(), keep=keep)
    return [int(s.uid.rpartition(":")[2]) - 1 if ":" in s.uid else s.uid for s in streams]


def test_records_are_chosen_by_their_columns(folder, caplog):
    caplog.set_level(logging.INFO)
    everything = uids(folder, None)
    assert uids(folder, {"voice": ["anna", "ben"]}) == [everything[i] for i in (0, 1, 3, 5)]
    assert "data.keep: 4 of 6 records" in caplog.text
    assert uids(folder, {"voice": "carl"}) == [everything[4]]
    assert uids(folder, {"voice": [None, "ben"]}) == [everything[i] for i in (1, 2, 5)]
    assert uids(folder, {"voice": ["anna", "ben"], "speed": 1}) == [everything[i] for i in (1, 3, 5)]
    assert len(uids(folder, {"voice": ["anna", None]}, "text.jsonl")) == 1  # a file without voices


def test_training_and_validation_see_only_these_and_the_digest_says_so(folder):
    path = str(folder / "speech.jsonl")
    data = {"train": path, "dev": path, "row_tokens": 64, "batch_tokens": 64, "pack": True}
    loaders, dev = {}, {}
    for name, keep in (("all", {}), ("some", {"voice": ["ben", "anna"]}), ("again", {"voice": ["anna", "ben"]})):
        section = DataSection(**data, keep=keep)
        loaders[name] = training_loader(section, tiny_tokenizer(), seed=1)
        dev[name] = {uid for batch in validation_batches(section, tiny_tokenizer(), seed=1) for uid in batch.uids}
    assert len(loaders["all"].streams) == 6 and len(loaders["some"].streams) == 4
    assert len(dev["all"]) == 6 and len(dev["some"]) == 4
    assert loaders["all"].digest != loaders["some"].digest == loaders["again"].digest


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"voise": "anna"}, r"speech.jsonl has 'voise'. Did you mean 'voice'\? Fields: meta, .*voice"),
        ({"voice": "dora"}, "nothing of .*speech.jsonl is kept; voice is: anna, ben, null, carl"),
    ],
)
def test_a_choice_that_keeps_nothing_is_refused(folder, keep, words):
    with pytest.raises(DataError, match=words):
        uids(folder, keep)


def test_stores_are_filtered_when_they_are_packed(folder, tmp_path):
    pack = ["data", "pack", str(folder / "speech.jsonl"), "--tokenizer", str(folder / "tok"), "--out"]
    assert main([*pack, str(tmp_path / "all")]) == 0
    assert main([*pack, str(tmp_path / "some"), "--keep", "voice=ben,anna"]) == 0
    keep = {"voice": ["anna", "ben"]}
    stored = open_streams(tmp_path / "some", tiny_tokenizer(), keep=keep)
    assert [s.uid for s in stored] == [s.uid for s in open_streams(folder / "speech.jsonl", tiny_tokenizer(), keep=keep)]
    with pytest.raises(DataError, match="'ttt data pack --keep'"):
        open_streams(tmp_path / "all", tiny_tokenizer(), keep=keep)
    assert main([*pack, str(tmp_path / "none"), "--keep", "voice"]) == 2
