"""Before and after on the same questions: paired intervals, verdicts, refusals."""

import json

import numpy as np
import pytest

from tests.conftest import tiny_model
from ttt.cli.main import main
from ttt.errors import ConfigError, DataError
from ttt.eval.cards import make_card, read_card, write_card
from ttt.eval.intervals import bootstrap
from ttt.textbench.guard import compare, guard_table, read_scored


def scored(folder, right, task="quiz", **decode):
    """An evaluation folder with one task."""
    folder.mkdir(parents=True)
    items = [
        {"uid": f"{task}/{i}", "task": task, "split": "test", "statistics": {"acc": [float(r), 1.0]}}
        for i, r in enumerate(right)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    entry = {"value": float(np.mean(right)), "low": 0.0, "high": 1.0, "n": len(right), "higher_is_better": True}
    write_card(folder / "card.json", make_card({"metrics": {f"{task}/acc": entry}}, decode={"limit": 0, **decode}))
    return read_scored(folder)


def test_intervals_are_paired(tmp_path):
    """Two systems that agree on nearly all questions are told apart although their own intervals overlap."""
    rng = np.random.default_rng(0)
    a = (rng.random(400) < 0.6).astype(float)
    b = a.copy()
    b[np.flatnonzero(a == 1)[:24]] = 0
    (change,) = compare(scored(tmp_path / "a", a), scored(tmp_path / "b", b), margin=0.01)
    assert change.difference == pytest.approx(-24 / 400) and (change.gained, change.lost_items, change.n) == (
        0,
        24,
        400,
    )
    assert change.verdict == "lost" and change.high < -0.01 and change.p < 0.01
    wide = bootstrap(np.stack([a, np.ones(400)], 1), lambda s: s[0] / s[1])
    assert change.high - change.low < wide.high - wide.low
    (back,) = compare(read_scored(tmp_path / "b"), read_scored(tmp_path / "a"), margin=0.01)
    assert back.verdict == "kept" and back.difference == pytest.approx(24 / 400) and (back.low, back.high) == (
        pytest.approx(-change.high), pytest.approx(-change.low)
    )  # fmt: skip


@pytest.mark.parametrize("margin, verdict", [(0.2, "kept"), (0.05, "unclear"), (0.0, "unclear")])
def test_the_margin_decides_what_few_questions_show(tmp_path, margin, verdict):
    a = np.tile([1.0, 0.0], 20)
    b = a.copy()
    b[[0, 2, 1]] = 0, 0, 1
    (change,) = compare(scored(tmp_path / "a", a), scored(tmp_path / "b", b), margin)
    assert change.verdict == verdict and change.low < 0 < change.high
    table = guard_table([change], "a -> b", margin)
    assert "quiz/acc" in table and verdict in table and "1/2" in table


def test_less_is_better_for_some(tmp_path):
    a, b = np.zeros(50), np.ones(50)
    before, after = scored(tmp_path / "a", a), scored(tmp_path / "b", b)
    before.card["metrics"]["quiz/acc"]["higher_is_better"] = False
    (change,) = compare(before, after)
    assert change.verdict == "lost" and change.lost_items == 50


def test_other_questions_or_other_ways_are_refused(tmp_path):
    a = scored(tmp_path / "a", [1, 0, 1])
    with pytest.raises(DataError, match="question 'quiz/3' was asked only once"):
        compare(a, scored(tmp_path / "b", [1, 0, 1, 1]))
    with pytest.raises(DataError, match="task 'other' is only in"):
        compare(a, scored(tmp_path / "c", [1, 0, 1], "other"))
    with pytest.raises(DataError, match=r"evaluated in different ways \(chat: None and True\)"):
        compare(a, scored(tmp_path / "d", [1, 0, 1], chat=True))
    with pytest.raises(ConfigError, match="--margin: must be >= 0"):
        compare(a, a, -1)


def test_verb_on_result_folders(tmp_path, capsys):
    scored(tmp_path / "a", np.ones(60))
    scored(tmp_path / "b", np.r_[np.zeros(30), np.ones(30)])
    assert main(["eval", "guard", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "o")]) == 1
    assert "lost" in capsys.readouterr().out
    record = json.loads((tmp_path / "o/guard.json").read_text())
    assert record["verdict"] == "lost" and record["changes"][0]["difference"] == -0.5
    assert main(["eval", "guard", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert main(["eval", "guard", str(tmp_path / "a"), str(tmp_path)]) == 2
    assert "give --out DIR and --tasks" in capsys.readouterr().err


def test_verb_evaluates_models_first(tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    from tests.unit.textbench.test_harness_tasks import TASKS

    for name, seed in (("before", 3), ("after", 4)):
        tiny_model(seed=seed).save(tmp_path / name / "m")
    call = ["eval", "guard", str(tmp_path / "before/m"), str(tmp_path / "after/m"), "--tasks", "tiny_choice", "--task-dir",
            str(TASKS), "--out", str(tmp_path / "o"), "--margin", "0.5"]  # fmt: skip
    assert main(call) == 0
    assert "tiny_choice/acc " in capsys.readouterr().out
    values = [
        read_card(tmp_path / f"o/{side}/card.json")["metrics"]["tiny_choice/acc"]["value"]
        for side in ("before", "after")
    ]
    record = json.loads((tmp_path / "o/guard.json").read_text())
    acc = next(c for c in record["changes"] if c["key"] == "tiny_choice/acc")
    assert [acc["before"], acc["after"]] == values and acc["difference"] == pytest.approx(values[1] - values[0])


def test_folders_of_score_are_compared_by_what_is_a_mean_over_questions(tmp_path):
    for name, right in (("before", [1, 1, 1, 0]), ("after", [1, 0, 0, 0])):
        (tmp_path / name).mkdir()
        lines = [
            {"uid": f"t{i}", "task": "text_qa", "split": "", "statistics": {"accuracy": [r, 1.0], "wer": [1.0, 3.0]}}
            for i, r in enumerate(right)
        ]
        (tmp_path / name / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        entry = {"value": 0.5, "low": 0.0, "high": 1.0, "n": 4, "higher_is_better": True}
        card = make_card({"metrics": {"text_qa/accuracy": entry}}, decode={"limit": 0})
        write_card(tmp_path / name / "card.json", {**card, "data": {"generations": name}})
    (change,) = compare(read_scored(tmp_path / "before"), read_scored(tmp_path / "after"))
    assert (change.key, change.before, change.after, change.lost_items) == ("text_qa/accuracy", 0.75, 0.25, 2)
    assert main(["eval", "guard", str(tmp_path / "before"), str(tmp_path / "before")]) == 0
