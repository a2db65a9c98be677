"""Flat ids -> frames, and where recordings are cut."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.unit.valle.small_valle import BOOKS, CODES, batch, examples
from ttt.data.batches.codec_frames import frames_of, resplit
from ttt.data.batches.prompt_cut import Cut
from ttt.data.batches.rows import collate
from ttt.data.encode import encode_example
from ttt.errors import ConfigError, DataError
from ttt.registry.families import OBJECTIVE, TASK
from ttt.text.tokenizer import TextTokenizer, train_bpe


def test_frames_are_the_codes_of_the_examples():
    some = batch()
    frames = frames_of(some)
    assert frames.prompt_lens.tolist() == [5, 4, 6] and frames.target_lens.tolist() == [7, 3, 9]
    flat = some.ids.flatten()
    for d, e in enumerate(examples()):
        for turn, codes, lens, at in (
            (0, frames.prompt, frames.prompt_lens, frames.prompt_at), (1, frames.target, frames.target_lens, frames.target_at),
        ):  # fmt: skip
            n = int(lens[d])
            assert np.array_equal(codes[d, :n].numpy(), e.turns[turn].spans[0].codes)
            assert not codes[d, n:].any()
            for codebook in range(BOOKS):  # positions lead back to the ids
                first = some.space.codebooks[codebook][0]
                assert torch.equal(flat[at[d, :n] + codebook] - first, codes[d, :n, codebook])


def test_cutting_anew_keeps_every_frame_in_order():
    frames = frames_of(batch())
    again = resplit(frames, torch.tensor([2, 6, 10]))
    for d in range(3):
        one, two = (
            torch.cat([f.prompt[d, : f.prompt_lens[d]], f.target[d, : f.target_lens[d]]]) for f in (frames, again)
        )
        assert torch.equal(one, two)
    assert again.prompt_lens.tolist() == [2, 6, 10] and again.target_lens.tolist() == [10, 1, 5]
    with pytest.raises(DataError, match="do not fit recordings"):
        resplit(frames, torch.tensor([12, 1, 1]))


def test_a_batch_that_does_not_say_where_codes_are_is_refused():
    with pytest.raises(DataError, match="does not say which ids are codes"):
        frames_of(dataclasses.replace(batch(), space=None))


def test_broken_frames_are_refused_by_name():
    some = batch()
    ids = some.ids.clone()
    at = int(frames_of(some).target_at[2, 1])
    row, column = divmod(at, ids.shape[1])
    ids[row, column] += (
        some.space.codebooks[1][0] - some.space.codebooks[0][0]
    )  # a code of the second codebook in the first's place
    with pytest.raises(DataError, match="'e2'.* no whole frames of 3"):
        frames_of(dataclasses.replace(some, ids=ids))


def test_an_answer_without_prompt_is_refused():
    some = batch()
    with pytest.raises(DataError, match="no audio before its answer"):
        frames_of(dataclasses.replace(some, target=torch.ones_like(some.target)))


def test_split_of_the_specification():
    fixed = Cut("fixed")
    assert fixed.prompts([500, 400], [0, 0]) == [160, 160]
    assert fixed.prompts([90], [0]) == [45]
    assert Cut("fixed", by="row").prompts([500, 400], [0, 0]) == [200, 160]


def test_drawn_splits_stay_in_their_limits():
    rng = np.random.default_rng(0)
    for mode, low, high, scale in (("uniform", 0.2, 0.6, None), ("seconds", 1.0, 3.0, 50.0)):
        split = Cut(mode, low=low, high=high, by="row", frame_rate_hz=scale or 0.0)
        lengths = rng.integers(200, 400, size=200).tolist()
        found = split.prompts(lengths, rng.random(200).tolist())
        shares = [p / (n if scale is None else scale) for p, n in zip(found, lengths, strict=True)]
        assert low - 0.02 < min(shares) < low + 0.1 * high and 0.8 * high < max(shares) <= high
        together = dataclasses.replace(split, by="batch")
        assert set(together.prompts(lengths, [0.5] * 200)) == {min(split.prompts(lengths, [0.5] * 200))}
    assert Cut("seconds", low=9.0, high=9.0).at_rate(50).prompts([100], [0.3]) == [99]  # something is left to say


def test_seconds_are_the_codecs(tmp_path):
    """Of the codec that the tokenizer knows, in training; of the codec at hand, in tasks; a rate that is given wins."""
    cut = {"mode": "seconds", "low": 0.2, "high": 0.2}
    item, codes = {"id": "i", "output": "u"}, {"u": np.zeros((60, 1), dtype=np.int32)}
    gen = torch.Generator().manual_seed(0)
    recordings = examples(sizes=((30, 30), (20, 40)))
    for rate, given, frames in ((75.0, 0.0, 15), (50.0, 0.0, 10), (75.0, 50.0, 10), (0.0, 50.0, 10), (0.0, 0.0, None)):
        block = {**cut, "frame_rate_hz": given}
        task = TASK.build({"name": "continuation", "cut": block}, "tasks[0]").at_rate(rate)
        objective = OBJECTIVE.build({"name": "valle", "cut": block}, "objective")
        train_bpe(["user assistant"] * 3, 300, CODES, BOOKS).made_by("c", rate).save(tmp_path / f"{rate}")
        tokenizer = TextTokenizer.load(tmp_path / f"{rate}")
        vocab = tokenizer.vocab
        rows = [[encode_example(e, tokenizer)] for e in recordings]
        some = collate(rows, max(len(r[0]) for r in rows), vocab.pad_id, vocab.mask_id, vocab.code_space)
        if frames is None:
            for call in (lambda: task.build(item, codes), lambda: objective.plan(some, gen)):  # noqa: B023
                with pytest.raises(ConfigError, match="mode 'seconds' needs the frames of a second.*cut.frame_rate_hz"):
                    call()
            continue
        assert len(task.build(item, codes).turns[0].spans[0].codes) == frames
        assert objective.plan(some, gen).frames.prompt_lens.tolist() == [frames, frames]
