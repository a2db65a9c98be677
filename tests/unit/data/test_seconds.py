"""Sizes of batches and limits of examples in seconds of sound."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.conftest import chat, text
from ttt.config.load import load_config
from ttt.config.schema import DataSection
from ttt.data.batches.seconds import in_tokens, within_limits
from ttt.data.batches.text_ratio import training_loader, validation_batches
from ttt.data.encode import encode_example
from ttt.data.read.examples import write_examples
from ttt.data.sources.streams import InMemory
from ttt.errors import ConfigError, DataError
from ttt.text.tokenizer import train_bpe
from ttt.types import Example, Span, Turn

T = train_bpe(["system user assistant"] * 3, 300, 8, 2).made_by("codec", 10.0)  # 20 codes a second


def recording(uid, prompt, answer):
    def said(frames, style):
        return (Span("audio", codes=np.zeros((frames, 2), dtype=np.int32), style=style),)

    return Example(uid, (Turn("user", said(prompt, "user")), Turn("assistant", said(answer, "last"))), "continuation")


SOME = [recording("short", 5, 14), recording("right", 8, 12), recording("longest", 20, 30), recording("long", 20, 31)]


def test_seconds_become_tokens_once():
    data = in_tokens(DataSection(batch_s=150, quadratic_s=10, batch_tokens=0), T.vocab)
    assert (data.batch_tokens, data.quadratic_tokens) == (3000, 200.0)
    assert in_tokens(DataSection(), T.vocab) == DataSection()
    unknown = train_bpe(["system user assistant"] * 3, 300, 8, 2).vocab
    with pytest.raises(ConfigError, match=r"data.min_s: seconds need the frames of a second, and /t/vocab.json does not say"):
        in_tokens(DataSection(min_s=5, tokenizer="/t"), unknown)
    with pytest.raises(ConfigError, match=r"data.max_s: 1 is less than data.min_s = 2"):
        in_tokens(DataSection(min_s=2, max_s=1), T.vocab)


def test_limits_count_prompt_and_answer(caplog):
    streams = InMemory([encode_example(e, T) for e in SOME])
    with caplog.at_level("INFO", "ttt"):
        kept = within_limits(streams, DataSection(min_s=2, max_s=5), T.vocab, "x.jsonl")
    assert [s.uid for s in kept] == ["right", "longest"], "both limits are taken"
    assert "2 of 4 examples left out: 1 with less than data.min_s = 2 s of sound, 1 with more" in caplog.text
    written = InMemory([encode_example(chat("t", [text("a")], [text("b")]), T)])
    assert len(within_limits(written, DataSection(min_s=2), T.vocab, "x.jsonl")) == 1, "text has no length in seconds"
    with pytest.raises(DataError, match=r"x.jsonl: none of 4 examples has 9 to inf s of sound \(they have 1.90 to 5.10\)"):
        within_limits(streams, DataSection(min_s=9), T.vocab, "x.jsonl")


def test_training_and_validation_obey(tmp_path):
    write_examples(tmp_path / "x.jsonl", SOME)
    data = DataSection(
        train=str(tmp_path / "x.jsonl"), dev=str(tmp_path / "x.jsonl"), pack=False, row_tokens=120, batch_s=7, min_s=2, max_s=5
    )
    loader = training_loader(data, T, seed=1)
    assert loader.batch_tokens == 140 and loader.updates_per_epoch == 2
    seen = {uid for update in range(2) for uid in loader.micro_batch(update, 0).uids}
    assert seen == {"right", "longest"} == {uid for b in validation_batches(data, T, seed=1) for uid in b.uids}
    with pytest.raises(ConfigError, match=r"data.batch_tokens: 100 is less than data.row_tokens = 120"):
        training_loader(dataclasses.replace(data, batch_s=5), T, seed=1)


def test_the_later_of_seconds_and_tokens_counts():
    one = load_config([], ["data.batch_s=150", "data.batch_tokens=4096"]).data
    two = load_config([], ["data.batch_tokens=4096", "data.batch_s=150"]).data
    assert (one.batch_s, one.batch_tokens) == (0, 4096) and two.batch_s == 150
