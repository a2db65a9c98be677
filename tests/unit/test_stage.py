import json
import logging

import pytest

from ttt.errors import ConfigError, DataError
from ttt.stage import Stage, fingerprint


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "in.txt").write_text("one")

    def make(**settings):
        return Stage(
            "cook",
            tmp_path / "out" / "cook.done.json",
            [tmp_path / "in.txt"],
            [tmp_path / "out" / "x"],
            settings,
            "buy it first",
        )

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("done")
    return make


def test_stage_is_up_to_date_after_finishing(stage, caplog):
    assert not stage(a=1).is_done(False)
    stage(a=1).finish({"n": 3}, 1.234)
    with caplog.at_level(logging.INFO):
        assert stage(a=1).is_done(False)
    assert "cook: up to date" in caplog.text
    assert not stage(a=1).is_done(True), "--overwrite does it again"


def test_stage_refuses_changed_settings_and_inputs(stage, tmp_path):
    stage(codec={"name": "x", "k": 1}, seed=1).finish({}, 0)
    with pytest.raises(ConfigError, match=r"made with other settings \(setting codec\.k\); give --overwrite"):
        stage(codec={"name": "x", "k": 2}, seed=1).is_done(False)
    (tmp_path / "in.txt").write_text("two")
    with pytest.raises(ConfigError, match=r"\(input .*in\.txt\)"):
        stage(codec={"name": "x", "k": 1}, seed=1).is_done(False)


def test_stage_missing_input_output_and_broken_marker(stage, tmp_path):
    stage(a=1).finish({}, 0)
    marker = tmp_path / "out" / "cook.done.json"
    assert json.loads(marker.read_text())["stage"] == "cook"
    (tmp_path / "out" / "x").unlink()
    assert not stage(a=1).is_done(False)
    marker.write_text("{")
    assert not stage(a=1).is_done(False)
    (tmp_path / "in.txt").unlink()
    with pytest.raises(DataError, match=r"in\.txt: missing; buy it first"):
        stage(a=1)


def test_fingerprints_of_folders(tmp_path):
    (tmp_path / "a").write_text("12")
    first = fingerprint(tmp_path)
    (tmp_path / "x.done.json").write_text("{}")
    assert fingerprint(tmp_path) == first
    (tmp_path / "a").write_text("123")
    assert fingerprint(tmp_path) != first


def test_seconds_are_those_since_the_stage_was_opened(stage, tmp_path):
    opened = stage(a=1)
    opened._opened -= 5
    opened.finish({})
    assert 5 <= json.loads((tmp_path / "out" / "cook.done.json").read_text())["seconds"] < 60
