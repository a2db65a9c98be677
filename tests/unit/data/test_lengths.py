"""Lengths of data and what a context costs, against a plain count."""

import json

import numpy as np
import pytest

from tests.conftest import SENTENCES, chat, text
from ttt.data.batches.loader import Loader
from ttt.data.batches.long_examples import check_context, context
from ttt.data.encode import encode_example
from ttt.data.read.examples import write_examples
from ttt.data.reports.lengths import measure
from ttt.data.sources.build_store import Settings, pack
from ttt.data.sources.mix import Source
from ttt.errors import ConfigError, DataError
from ttt.text.tokenizer import train_bpe
from ttt.text.vocab import Vocabulary
from ttt.types import Span

TAGGED = "text_then_speech_tags"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lengths")
    tokenizer = train_bpe(SENTENCES, 300, 16, form=TAGGED).made_by("toy", 50.0)
    tokenizer.save(folder / "tok")
    rng = np.random.default_rng(0)
    examples = []
    for n in range(150):
        codes = rng.integers(0, 16, (int(rng.integers(1, 60)), 1)).astype(np.int32)
        answer = [text(" ".join(SENTENCES[: 1 + n % 3])), Span("audio", codes=codes, style="last")]
        examples.append(chat(f"e{n}", [text("why")], answer))
    write_examples(folder / "all.jsonl", examples)
    streams = [encode_example(e, tokenizer) for e in examples]
    return folder, tokenizer, examples, streams


def settings(world):
    return Settings(str(world[0] / "tok"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_files_are_measured_as_they_are_trained_on(world, jobs):
    folder, _, examples, streams = world
    found = measure([folder / "all.jsonl"], settings(world), jobs=jobs)
    assert found.tokens.tolist() == [len(s) for s in streams]
    assert found.targets.tolist() == [int(s.target.sum()) for s in streams]
    assert found.speech.tolist() == [len(e.turns[-1].spans[-1].codes) for e in examples]


def test_stores_mixes_and_limits(world, tmp_path):
    folder = world[0]
    whole = measure([folder / "all.jsonl"], settings(world))
    pack([Source(folder / "all.jsonl", name="all")], tmp_path / "store", settings(world))
    stored = measure([tmp_path / "store"], Settings(""))
    assert Vocabulary.load(tmp_path / "store/vocab.json").codec == "toy", "the meaning of the ids lies beside them"
    for name in ("tokens", "targets", "speech"):
        assert np.array_equal(getattr(stored, name), getattr(whole, name)), "no tokenizer is needed for tokens"
    (tmp_path / "mix.json").write_text(
        json.dumps([{"path": str(folder / "all.jsonl")}, {"path": str(tmp_path / "store")}])
    )
    both = measure([tmp_path / "mix.json"], settings(world), limit=7)
    assert both.tokens.tolist() == 2 * whole.tokens[:7].tolist()


def test_numbers_of_a_report(world):
    found = measure([world[0] / "all.jsonl"], settings(world))
    report = found.as_json([40, 10_000], codes_hz=50.0)
    tokens = found.tokens
    assert report["tokens"]["n"] == 150 and report["tokens"]["sum"] == tokens.sum()
    assert report["tokens"]["mean"] == pytest.approx(tokens.mean()) and report["tokens"]["p50"] == np.median(tokens)
    assert report["tokens"]["p99"] == pytest.approx(np.percentile(tokens, 99))
    assert report["seconds"]["max"] == pytest.approx(found.speech.max() / 50)
    first, second = report["contexts"]
    longer = [n for n in tokens.tolist() if n > 40]
    assert first["examples"] == len(longer) and first["share"] == len(longer) / 150
    assert first["dropped"] == pytest.approx(sum(longer) / tokens.sum())
    assert first["cut"] == pytest.approx(sum(n - 40 for n in longer) / tokens.sum())
    assert second["examples"] == second["cut"] == second["dropped"] == 0


def test_broken_records_are_counted(world, tmp_path):
    lines = (world[0] / "all.jsonl").read_text().splitlines()[:3]
    bad = json.dumps({"uid": "b", "task": "", "turns": [{"role": "user", "spans": [{"text": "a <|im_start|> b"}]}]})
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, "{", bad]) + "\n")
    found = measure([tmp_path / "x.jsonl"], settings(world))
    assert len(found.tokens) == 3 and found.bad == {"not JSON": 1, "special token in text": 1}
    (tmp_path / "y.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="no usable example .*y.jsonl:1: not JSON"):
        measure([tmp_path / "y.jsonl"], settings(world))
    with pytest.raises(ConfigError, match="--tokenizer: .*x.jsonl holds examples, not tokens"):
        measure([tmp_path / "x.jsonl"], Settings(""))


def test_sentence_of_a_context():
    lengths = np.array([10, 20, 30, 40])
    assert context(lengths, 40).line() == "no example is longer than 40 tokens"
    assert context(lengths, 25).line() == (
        "2 examples (50.00 %) are longer than 25 tokens: leaving them out loses 70.00 % of the tokens, a cut would lose 20.00 %"
    )


def test_a_context_in_which_nothing_fits_is_refused(world):
    _, tokenizer, _, streams = world
    shortest = min(map(len, streams))
    assert check_context(np.array([len(s) for s in streams]), shortest).examples < len(streams)
    with pytest.raises(
        ConfigError, match=f"data.row_tokens: {shortest - 1} is shorter than the shortest of 150 examples"
    ):
        Loader(streams, tokenizer.vocab, row_tokens=shortest - 1, batch_tokens=shortest - 1, seed=0, max_drop_share=1.0)


def test_the_loader_says_what_it_leaves_out(world, caplog):
    _, tokenizer, _, streams = world
    lengths = np.array([len(s) for s in streams])
    row = int(np.percentile(lengths, 90))
    costs = context(lengths, row)
    loader = Loader(streams, tokenizer.vocab, row_tokens=row, batch_tokens=row, seed=0, max_drop_share=0.2)
    assert len(loader.streams) == 150 - costs.examples and f"they hold {costs.dropped:.2%} of the tokens" in caplog.text
    with pytest.raises(DataError, match=rf"{costs.examples} of 150 examples are longer .*; raise data.row_tokens"):
        Loader(streams, tokenizer.vocab, row_tokens=row, batch_tokens=row, seed=0)


def test_the_loader_says_what_it_cuts(world, caplog):
    _, tokenizer, _, streams = world
    lengths = np.array([len(s) for s in streams])
    row = int(np.percentile(lengths, 90))
    costs = context(lengths, row)
    options = {"batch_tokens": row, "seed": 0, "long_rows": "cut"}
    loader = Loader(streams, tokenizer.vocab, row_tokens=row, **options)
    assert len(loader.streams) == 150 and len(loader.report.cut) == costs.examples
    assert f"{costs.examples} of 150 examples are longer than data.row_tokens = {row} and are cut" in caplog.text
    assert f"{100 * costs.cut:.2f} % of all tokens" in caplog.text
    with pytest.raises(ConfigError, match="data.row_tokens: 5 is shorter than the shortest of 150 examples"):
        Loader(streams, tokenizer.vocab, row_tokens=5, batch_tokens=5, seed=0, long_rows="cut")
