"""Result cards: complete, written in one move, read back with checks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ttt.config.load import build_config
from ttt.errors import DataError
from ttt.eval import cards
from ttt.io.digests import sha256_digest
from ttt.io.json_output import plain

SHIPPED = sorted((Path(__file__).parents[3] / "docs" / "results").glob("*/cards/*.json"))

RESULT = {
    "metrics": {"asr/wer": {"value": 0.125, "low": 0.1, "high": float("nan"), "n": 8, "metric_id": "wer[words]"}},
    "judge": "fake-1", "codec": "tones-1", "normalizer": "words", "limited": "", "timing": {"decode_s": 1.5},
}  # fmt: skip


def test_card_holds_what_the_numbers_rest_on_and_comes_back(tmp_path):
    data = tmp_path / "test.jsonl"
    data.write_text("{}\n")
    config = {"run": {"seed": 3}, "eval": {"limit": 8, "note": "quick corpus"}}
    card = cards.make_card(
        RESULT, config=config, seeds={"run": 3}, data=[data], decode={"steps": 8}, command=["ttt", "score"]
    )
    cards.write_card(tmp_path / "eval" / "card.json", card)
    back = cards.read_card(tmp_path / "eval" / "card.json")
    assert back["metrics"]["asr/wer"]["value"] == 0.125 and back["metrics"]["asr/wer"]["high"] is None  # no NaN in JSON
    assert back["limited"] == "quick corpus; first 8 items of each file"
    assert back["data"] == {"test.jsonl": sha256_digest(data)} and len(sha256_digest(data)) == 16
    assert back["command"] == "ttt score" and back["config"] == config and back["seeds"] == {"run": 3}
    assert {"python", "ttt", "torch", "jiwer", "sacrebleu"} <= set(back["versions"])
    assert back["hardware"]["cores"] > 0 and back["timing"] == {"decode_s": 1.5}
    assert [p.name for p in (tmp_path / "eval").iterdir()] == ["card.json"]  # no temporary file is left
    assert "NaN" not in (tmp_path / "eval" / "card.json").read_text()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "other"}, "format is 'other', expected 'ttt-card-1'"),
        ({"seeds": None}, "'seeds' must be"),
        ({"seeds": ...}, "lacks 'seeds'"),
        ({"metrics": {"asr/wer": {"value": 1.0}}}, r"metrics\['asr/wer'\]: expected value, low, high and n"),
        ({"metrics": {"a": {"value": "1", "low": 0, "high": 0, "n": 1}}}, "value must be a number or null, got '1'"),
        ({"metrics": {"a": {"value": 1, "low": 0, "high": 0, "n": 1.5}}}, "n must be a whole number"),
    ],
)
def test_a_damaged_card_is_refused_with_the_field(tmp_path, change, message):
    card = plain(cards.make_card(RESULT)) | change
    card = {k: v for k, v in card.items() if v is not ...}
    path = tmp_path / "card.json"
    path.write_text(json.dumps(card))
    with pytest.raises(DataError, match=message) as error:
        cards.read_card(path)
    assert str(path) in str(error.value)
    with pytest.raises(DataError, match=message):
        cards.write_card(tmp_path / "again.json", card)
    assert not (tmp_path / "again.json").exists()


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(DataError, match="card.json: no such result card; run 'ttt score' first"):
        cards.read_card(tmp_path / "card.json")
    (tmp_path / "card.json").write_text('{"format":')
    with pytest.raises(DataError, match="card.json(:1)?: not JSON"):
        cards.read_card(tmp_path / "card.json")


def test_shipped_cards_are_read_are_compact_and_are_no_copies():
    assert len(SHIPPED) > 100
    read = {path: cards.read_card(path) for path in SHIPPED}
    for path, card in read.items():
        assert not card["by_kind"] and path.read_text(encoding="utf-8") == cards.card_text(card)
        assert {"row", "seed", "digest", "inputs"} <= set(card)
    assert len({card["digest"] for card in read.values()}) == len(read)


@pytest.mark.parametrize("table", sorted({path.parts[-3] for path in SHIPPED}))
def test_the_configurations_of_shipped_cards_are_accepted_today(table, caplog):
    """`ttt repro` builds the card's configuration; the last cell of each table stands for its rows."""
    path = [path for path in SHIPPED if path.parts[-3] == table][-1]
    config = build_config(cards.read_card(path)["config"], ("data.train", "data.tokenizer", "train.steps"))
    assert config.train.steps > 0 and "old name" not in caplog.text


@pytest.mark.slow
def test_the_configuration_of_every_shipped_card_is_accepted_today():
    for path in SHIPPED:
        build_config(cards.read_card(path)["config"], ("data.train", "data.tokenizer", "train.steps"))
