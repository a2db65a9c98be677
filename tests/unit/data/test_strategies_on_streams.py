"""Strategies that shape the canvas: in training and in validation alike, and never past the end of a row."""

import logging

import numpy as np
import pytest

from tests.conftest import audio, chat, gen, random_streams, text
from ttt.data.batches.loader import Loader, fixed_batches
from ttt.data.batches.strategies import shaping
from ttt.data.encode import encode_example
from ttt.diffusion.strategies import AnswerPadding, EndPadding, Sst
from ttt.errors import ConfigError, DataError
from ttt.interfaces import Strategy
from ttt.registry.families import OBJECTIVE, STRATEGY

ROW = 110


@pytest.fixture(scope="module")
def streams():
    return [s for s in random_streams(5, 40, 20) if len(s) <= ROW - 20]


@pytest.fixture(scope="module")
def spoken(tokenizer):
    """Answers of one span, 3 to 14 codes."""
    made = [chat(f"s{n}", [text("a cat")], [audio(list(range(n)), "last")]) for n in range(3, 15)]
    return [encode_example(e, tokenizer) for e in made]


def loader(streams, vocab, *strategies, row=ROW, **settings):
    settings = {"batch_tokens": 2 * row, "seed": 3, "pack": False, **settings}
    return Loader(streams, vocab, row_tokens=row, strategies=strategies, **settings)


def by_uid(batches):
    """uid -> its ids."""
    found = {}
    for batch in batches:
        for doc, uid in enumerate(batch.uids):
            found[uid] = batch.ids[batch.doc == doc].tolist()
    return found


@pytest.mark.parametrize("name", STRATEGY.names())
@pytest.mark.parametrize("pack", [True, False])
def test_validation_applies_what_shapes_the_canvas_and_nothing_else(streams, vocab, name, pack):
    strategy = STRATEGY.build({"name": name, "p": 1.0}, "strategy")
    bare, acted = (
        by_uid(fixed_batches(streams, vocab, 2 * ROW, 4 * ROW, strategies=some, pack=pack))
        for some in ((), (strategy,))
    )
    assert shaping([strategy]) == ((strategy,) if strategy.shapes_canvas else ())
    assert (bare != acted) == strategy.shapes_canvas
    for s in streams if strategy.shapes_canvas else ():
        n = len(bare[s.uid])
        assert sorted(set(acted[s.uid])) == sorted(set(bare[s.uid])) and 0 <= len(acted[s.uid]) - n <= strategy.growth(
            s
        )


def test_draws_are_the_same_every_time_and_of_their_own(spoken, vocab):
    strategies = (Sst(p=1.0), EndPadding(p=0.5, maximum=9))
    first, again, other = (
        by_uid(fixed_batches(spoken, vocab, ROW, 2 * ROW, strategies=strategies, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other
    grown = {uid: len(ids) for uid, ids in first.items()}
    assert len({grown[s.uid] - len(s) for s in spoken}) > 2


def test_training_and_validation_show_the_same_canvas(spoken, vocab):
    """The same examples, the same times: training's and validation's loss are of the same positions."""
    objective = OBJECTIVE.build({"name": "nar", "strategies": [{"name": "answer_padding", "length": 30}]}, "o")
    made = loader(spoken, vocab, *objective.strategies)
    batches = [made.micro_batch(u, 0) for u in range(made.updates_per_epoch)]
    dev = fixed_batches(spoken, vocab, ROW, 2 * ROW, strategies=objective.strategies, pack=False)
    assert by_uid(batches) == by_uid(dev)
    bare = fixed_batches(spoken, vocab, ROW, 2 * ROW, pack=False)
    answers = [{int(objective.maskable(b)[r].sum()) for b in some for r in range(len(b.ids))} for some in (dev, bare)]
    assert answers[0] == {30} and len(answers[1]) == len(spoken)


def test_validation_is_laid_out_as_training_is(streams, vocab):
    """`padding: learn` fills a row up behind its last document: rows of several would hide that from the others."""
    objective = OBJECTIVE.build({"name": "nar", "padding": "learn"}, "o")
    for batch in fixed_batches(streams, vocab, ROW, 3 * ROW, pack=False):
        assert all(len(set(row[row >= 0].tolist())) == 1 for row in batch.doc) and batch.ids.numel() <= 3 * ROW
        plan = objective.clean_plan(batch, gen(1))
        assert plan.layout.visible.all()
    packed = fixed_batches(streams, vocab, ROW, 3 * ROW)
    assert any(len(set(row[row >= 0].tolist())) > 1 for batch in packed for row in batch.doc)


# ------------------------------------------------------------------------------------------------- ends of rows


def test_an_answer_is_filled_up_to_the_end_of_the_row(spoken, vocab, caplog):
    """`long_rows: cut`: the canvas ends with the row; examples keep all their own tokens."""
    row = max(map(len, spoken)) + 2
    strategy = AnswerPadding(length=row)  # with the prompt more than a row
    with caplog.at_level(logging.WARNING):
        made = loader(spoken, vocab, strategy, row=row, long_rows="cut")
    assert f"{len(spoken)} of {len(spoken)} examples have less room in data.row_tokens = {row}" in caplog.text
    seen = by_uid(made.micro_batch(u, 0) for u in range(made.updates_per_epoch))
    assert len(seen) == len(spoken) and not made.report.dropped and not made.report.cut
    for s in spoken:
        assert seen[s.uid] == s.ids.tolist() + [int(s.ids[-1])] * (row - len(s))
    assert by_uid(fixed_batches(spoken, vocab, row, 2 * row, strategies=[strategy], long_rows="cut", pack=False)) == seen


@pytest.mark.parametrize(
    "strategy", [EndPadding(p=1.0, maximum=12), EndPadding(p=1.0, length=16)], ids=["some", "length"]
)
@pytest.mark.parametrize("pack", [True, False])
def test_ends_of_speech_are_repeated_as_far_as_there_is_room(spoken, vocab, strategy, pack):
    row = max(map(len, spoken)) + 1
    made = loader(spoken, vocab, strategy, row=row, long_rows="cut", pack=pack)
    assert made.lengths.max() == row
    for update in range(made.updates_per_epoch):
        batch = made.micro_batch(update, 0)
        assert batch.ids.shape[1] <= row
        assert batch.ids[batch.doc >= 0].tolist().count(vocab.im_end_id) == 3 * batch.n_docs  # no turn lost its end


def test_a_cut_example_does_not_grow(spoken, vocab):
    """It ends inside its speech, which has no end token to repeat."""
    row = sorted(map(len, spoken))[6]
    made = loader(spoken, vocab, EndPadding(p=1.0, maximum=12), AnswerPadding(length=40), row=row, long_rows="cut")
    assert len(made.report.cut) == 5 and not made.report.dropped
    seen = by_uid(made.micro_batch(u, 0) for u in range(2 * made.updates_per_epoch))
    assert max(map(len, seen.values())) <= row
    assert all(vocab.eoa_last_id not in seen[uid] for uid in made.report.cut)


def test_what_does_not_fit_is_said_with_its_cause(spoken, vocab):
    longest = max(map(len, spoken))
    with pytest.raises(
        DataError, match=r"tokens, 9 of them for what objective.strategies may add\).*say data.long_rows=cut"
    ):
        loader(spoken, vocab, EndPadding(maximum=9), row=longest)
    with pytest.raises(
        ConfigError, match=f"{longest} has no room for what objective.strategies add: .*let them add less"
    ):
        loader(spoken, vocab, AnswerPadding(length=longest), row=longest)


def test_a_strategy_of_ones_own_does_nothing_where_there_is_no_room(spoken, vocab):
    class Doubles(Strategy):
        def growth(self, stream):
            return 5

        def on_stream(self, stream, gen):
            return stream.repeat_last(5)

    row = max(map(len, spoken)) + 3
    made = loader(spoken, vocab, Doubles(), row=row, long_rows="cut")
    seen = by_uid(made.micro_batch(u, 0) for u in range(made.updates_per_epoch))
    assert {len(seen[s.uid]) - len(s) for s in spoken} == {0, 5}
    assert all(len(seen[s.uid]) == len(s) + 5 * (len(s) + 5 <= row) for s in spoken)


@pytest.mark.parametrize("room", [0, 1, 4])
def test_limited_growth(spoken, room):
    for strategy in (EndPadding(p=1.0, maximum=8), EndPadding(p=1.0, length=30), AnswerPadding(length=40)):
        some = [strategy.limited(s, room).on_stream(s, np.random.default_rng(n)) for n in range(20) for s in spoken[:2]]
        assert max(len(a) - len(s) for a, s in zip(some, spoken[:2] * 20, strict=True)) == room


def test_train_lays_validation_out_as_the_recipe_says(tokenizer, tmp_path, monkeypatch):
    from ttt.cli.main import main
    from ttt.data.read.examples import write_examples

    made = [chat(f"s{n}", [text("a cat")], [text("the mat")]) for n in range(4)]
    write_examples(tmp_path / "a.jsonl", made)
    tokenizer.save(tmp_path / "tok")
    seen = {}

    def stop(streams, vocab, row_tokens, batch_tokens, **settings):
        seen.update(
            settings, n=len(streams), batches=fixed_batches(streams, vocab, row_tokens, batch_tokens, **settings)
        )
        raise DataError("far enough")

    monkeypatch.setattr("ttt.data.batches.text_ratio.fixed_batches", stop)
    call = [
        "train", f"data.train={tmp_path}/a.jsonl", f"data.dev={tmp_path}/a.jsonl", f"data.tokenizer={tmp_path}/tok",
        "objective={name: nar, strategies: [{name: answer_padding, length: 20}, {name: random_length}]}", "data.pack=false",
        "data.row_tokens=64", "data.batch_tokens=128", "data.long_rows=cut", "run.seed=5", "train.steps=1",
        f"run.dir={tmp_path}/run", "model.preset=toy",
    ]  # fmt: skip
    assert main(call) == 2
    assert (seen["n"], seen["seed"], seen["pack"], seen["long_rows"]) == (4, 5, False, "cut")
    assert {int(b.noisable[r].sum()) for b in seen["batches"] for r in range(len(b.ids))} == {20}
