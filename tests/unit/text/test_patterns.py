"""Code patterns: exact inverse, order of places, what vocab.json keeps, and who refuses what."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SENTENCES
from ttt.check.core import check
from ttt.config.load import load_config
from ttt.errors import ConfigError, DataError
from ttt.registry.families import PATTERN
from ttt.text.make import plan_tokenizer
from ttt.text.patterns import codes_of, grid_of
from ttt.text.tokenizer import TextTokenizer, train_bpe

CODES = 6
SPECS = ["flatten", "delay", "parallel", {"name": "parallel", "frames": 3}]
FORMS = ("interleaved", "llada_tts", "text_then_speech", "text_then_speech_tags")


def tokenizer(spec, codebooks: int = 3, form: str = "interleaved") -> TextTokenizer:
    return train_bpe(SENTENCES * 3, 300, CODES, codebooks, form, PATTERN.build(spec, "data.pattern"))


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.sampled_from(SPECS), st.integers(0, 12), st.integers(1, 5), st.integers(0, 2**31), st.data())
def test_codes_come_back_from_a_grid_and_from_its_first_rows(spec, frames, codebooks, seed, data):
    pattern = PATTERN.build(spec, "p")
    codes = np.random.default_rng(seed).integers(0, CODES, (frames, codebooks)).astype(np.int32)
    grid = grid_of(pattern, codes, CODES)
    assert grid.dtype == np.int32
    np.testing.assert_array_equal(codes_of(pattern, grid, codebooks, CODES), codes)
    rows = data.draw(st.integers(0, len(grid)))
    part = codes_of(pattern, grid[:rows], codebooks, CODES)
    np.testing.assert_array_equal(part, codes[: len(part)])
    seen = np.isin(np.arange(codes.size), pattern.index(frames, codebooks)[:rows]).reshape(codes.shape).all(1)
    assert len(part) == int(seen.cumprod().sum()), "all frames that the rows determine"


@pytest.mark.parametrize("spec", SPECS)
def test_patterns_keep_what_they_promise(spec):
    assert [r for r in check("pattern", PATTERN.build(spec, "p")) if r.outcome != "ok"] == []


def test_a_delayed_code_stands_behind_its_coarser_ones_and_the_frame_before():
    index = PATTERN.build("delay", "p").index(4, 3)
    row = np.array([np.argwhere(index == i)[0][0] for i in range(12)]).reshape(4, 3)
    np.testing.assert_array_equal(row, np.arange(4)[:, None] + np.arange(3))
    assert index.shape == (6, 3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spec", SPECS)
def test_ids_of_a_pattern(spec, form, tmp_path):
    made = tokenizer(spec, form=form)
    v = made.vocab
    codes = np.random.default_rng(1).integers(0, CODES, (4, 3)).astype(np.int32)
    ids = v.code_ids(codes)
    assert len(ids) == v.places(4) and (ids >= v.code_start).all() and (ids < v.code_stop).all()
    for k, (start, stop) in enumerate(v.code_space.codebooks):  # the constraint `frame` holds: place p is of column p mod K
        assert ((ids[k :: v.columns] >= start) & (ids[k :: v.columns] < stop)).all()
    np.testing.assert_array_equal(v.codes(ids), codes)
    np.testing.assert_array_equal(v.frames(ids), codes)
    begun = {"flatten": 2, "delay": 0, "parallel": 2}.get(str(spec), 4)
    np.testing.assert_array_equal(v.frames(ids[: 2 * v.columns]), codes[:begun])
    assert (v.num_codes, v.num_codebooks) == (CODES, 3), "what the codec has"
    made.save(tmp_path)
    again = TextTokenizer.load(tmp_path).vocab
    assert again == v and again.digest == v.digest and again.pattern == v.pattern


@pytest.mark.parametrize("spec, codebooks, frames, ids, positions", [
    ("flatten", 4, 500, 2000, 2000), ("delay", 4, 500, 2012, 503), ({"name": "delay", "together": False}, 4, 500, 2012, 2012),
    ("parallel", 4, 500, 2000, 500), ({"name": "parallel", "frames": 3}, 1, 500, 501, 167), ("delay", 8, 125, 1056, 132),
], ids=str)  # fmt: skip
def test_lengths_are_those_of_the_documentation(spec, codebooks, frames, ids, positions):
    v = tokenizer(spec, codebooks).vocab
    assert (v.places(frames), v.places(frames) // v.codes_together) == (ids, positions)


def test_flatten_leaves_vocabularies_as_they_were(tmp_path):
    made = tokenizer("flatten")
    made.save(tmp_path)
    assert "pattern" not in json.loads((tmp_path / "vocab.json").read_text())
    assert made.vocab.code_ids(np.array([[0, 1, 2]])).tolist() == [made.vocab.code_start + i for i in (0, 7, 14)]
    assert made.vocab.digest != tokenizer("delay").vocab.digest


def test_streams_hand_frames_on_as_soon_as_they_are_whole():
    v = tokenizer("delay").vocab
    codes = np.arange(12).reshape(4, 3) % CODES
    ids = v.code_ids(codes)
    assert [len(v.codes(ids[:n])) for n in range(0, len(ids) + 1, 3)] == [0, 0, 0, 1, 2, 3, 4]
    broken = np.insert(ids, 10, ids[4])
    np.testing.assert_array_equal(v.codes(broken), codes[:1], "nothing behind a row that is not whole")


def test_wrong_ids_and_settings_are_refused(tmp_path):
    made = tokenizer("delay")
    v = made.vocab
    ids = v.code_ids(np.zeros((4, 3), np.int32))
    early = ids.copy()
    early[9] = v.code_start + CODES  # the empty code of the first codebook
    with pytest.raises(DataError, match="empty code of pattern 'delay'.* behind frame 2"):
        v.frames(early, "x")
    with pytest.raises(DataError, match="no code for position 1"):
        v.frames(ids[[0, 0, 2]], "x")
    assert made.check_pattern(PATTERN.build("delay", "p")).check_pattern(PATTERN.build("flatten", "p")) is made
    with pytest.raises(ConfigError, match="data.pattern: .*delay.*, but the tokenizer .*flatten"):
        tokenizer("flatten").check_pattern(PATTERN.build("delay", "p"))
    made.save(tmp_path)
    stored = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(stored | {"pattern": "dely"}))
    with pytest.raises(Exception, match="no code pattern named 'dely'. Did you mean 'delay'"):
        TextTokenizer.load(tmp_path)
    del stored["pattern"]
    (tmp_path / "vocab.json").write_text(json.dumps(stored))
    with pytest.raises(DataError, match="the other fields make it"):
        TextTokenizer.load(tmp_path)


def test_a_configuration_names_the_pattern_of_its_tokenizer():
    grouped = ["data.num_codes=6", "data.pattern={name: parallel, frames: 3}"]
    plan = plan_tokenizer(load_config([], ["data.tokenizer=x", "model.preset=toy", *grouped]))
    assert plan.settings()["pattern"] == {"name": "parallel", "frames": 3}
    v = plan.make().vocab
    assert (v.num_codes, v.num_codebooks, v.columns, v.code_stop - v.code_start) == (6, 1, 3, 3 * 7)
    assert "pattern" not in plan_tokenizer(load_config([], ["data.tokenizer=x", "model.preset=toy"])).settings()
