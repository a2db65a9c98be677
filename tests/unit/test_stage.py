import json
import logging
import os

import pytest

from ttt.errors import ConfigError, DataError
from ttt.io.outputs import withdraw_claims
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

    return make


def test_stage_is_up_to_date_after_finishing(stage, tmp_path, caplog):
    assert not stage(a=1).is_done(False)
    (tmp_path / "out" / "x").write_text("done")
    assert not stage(a=1).is_done(False), "it was not finished"
    stage(a=1).finish({"n": 3}, 1.234)
    with caplog.at_level(logging.INFO):
        assert stage(a=1).is_done(False)
    assert "cook: up to date" in caplog.text
    assert not stage(a=1).is_done(True), "--overwrite does it again"


def test_stage_refuses_changed_settings_and_inputs(stage, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("done")
    stage(codec={"name": "x", "k": 1}, seed=1).finish({}, 0)
    with pytest.raises(ConfigError, match=r"made with other settings \(setting codec\.k\); give --overwrite"):
        stage(codec={"name": "x", "k": 2}, seed=1).is_done(False)
    (tmp_path / "in.txt").write_text("two")
    with pytest.raises(ConfigError, match=r"\(input .*in\.txt\)"):
        stage(codec={"name": "x", "k": 1}, seed=1).is_done(False)


def test_stage_missing_input_output_and_broken_marker(stage, tmp_path):
    stage(a=1).finish({}, 0)
    (tmp_path / "out" / "x").write_text("done")
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


@pytest.mark.parametrize("named", [False, True])
def test_what_has_no_marker_is_somebodys(tmp_path, named):
    (tmp_path / "x").write_text("mine")
    stage = Stage("cook", tmp_path / "cook.done.json", [], [tmp_path / "x"], {}, named=named)
    with pytest.raises(ConfigError, match="x: was not made by ttt; "):
        stage.is_done(False)
    if named:
        assert not stage.is_done(True), "the user named this file and gave --overwrite"
    else:
        with pytest.raises(ConfigError, match="x: was not made by ttt; move it away"):
            stage.is_done(True)


def test_an_output_is_no_input(tmp_path):
    (tmp_path / "in").write_text("")
    (tmp_path / "link").symlink_to("in")
    os.link(tmp_path / "in", tmp_path / "hard")
    for name in ("in", "link", "hard", "../" + tmp_path.name + "/in"):
        stage = Stage("cook", tmp_path / "cook.done.json", [tmp_path / "in"], [tmp_path / name], {}, named=True)
        with pytest.raises(ConfigError, match="is the source"):
            stage.is_done(True)


def test_a_claim_is_withdrawn_when_nothing_was_written(tmp_path):
    out = tmp_path / "new" / "x"
    stage = Stage("cook", tmp_path / "new" / "cook.done.json", [], [out], {})
    assert not stage.is_done(False) and stage.marker.is_file()
    withdraw_claims()
    assert not out.parent.exists()
    assert not stage.is_done(False)
    out.write_text("half of the work")
    withdraw_claims()
    assert not Stage("cook", stage.marker, [], [out], {"other": 1}).is_done(False), "goes on after a kill"


def test_only_what_the_marker_lists_was_made(tmp_path):
    marker = tmp_path / "cook.done.json"
    Stage("cook", marker, [], [tmp_path / "a"], {}).finish({})
    for name in "ab":
        (tmp_path / name).write_text("")
    assert not Stage("cook", marker, [], [tmp_path / "a"], {}).is_done(True)
    with pytest.raises(ConfigError, match="b: was not made by ttt"):
        Stage("cook", marker, [], [tmp_path / "a", tmp_path / "b"], {}).is_done(True)
