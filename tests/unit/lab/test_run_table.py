"""Tables of experiments: planning, running (with a fake of the verbs), resuming, failing, repeating; once for real."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import audio, text
from ttt.cli.main import main, module_of, parse, parser_of
from ttt.config.load import load_config, to_plain
from ttt.data.read.examples import write_examples
from ttt.errors import ConfigError, DataError
from ttt.eval import cards
from ttt.eval.intervals import bootstrap
from ttt.eval.metrics import Accuracy, CallsPerSecond
from ttt.lab import plan as planning
from ttt.lab.runner import CellFailed, Halted, Stop, Subprocesses
from ttt.lab.table_file import read_table
from ttt.types import Example, Turn

ROOT = Path(__file__).resolve().parents[3]
ITEMS = 12
METRICS = {"accuracy": Accuracy(), "calls_per_second": CallsPerSecond()}


@pytest.fixture
def world(tmp_path, tokenizer, monkeypatch, request):
    """A working folder with a recipe, a table file, examples of one task, and a tokenizer; one test draws plots."""
    monkeypatch.chdir(tmp_path)
    if request.node.name != "test_a_table_from_nothing_and_again":
        monkeypatch.setattr("ttt.lab.grid_plots.ablation_panels", lambda *_: False)
        monkeypatch.setattr("ttt.lab.grid_plots.frontier", lambda *_: False)
    tokenizer.save(tmp_path / "tokenizer")
    asked = [
        Example(f"q{i}", (Turn("user", (text("hi"),)), Turn("assistant", (text("yes"), audio([1], "last")))), "qa",
                {"split": "test", "answer_key": "yes", "text_ref": "yes", "speech_ref": "yes"})
        for i in range(ITEMS)
    ]  # fmt: skip
    for name in ("train", "test"):
        write_examples(tmp_path / f"{name}.jsonl", asked)
    (tmp_path / "base.yaml").write_text(
        "run: {device: cpu}\ndata: {dir: ., train: train.jsonl, tokenizer: tokenizer}\ntrain: {steps: 5}\ntasks: [{name: qa}]\n"
        "eval: {sampler: {block_length: 4, diffusion_steps: 8, gen_length: 8}}\n"
    )
    return tmp_path


def write_table(folder: Path, **changes) -> Path:
    table = {
        "title": "Demo", "base": ["base.yaml"], "seeds": 2, "baseline": "a", "metrics": {"qa/accuracy": "QA"}, "splits": ["test"],
        "budget": "equal updates", "note": "Made up.", "resamples": 100,
        "rows": {
            "a": {"label": "plain"},
            "b": {"label": "cosine", "settings": {"objective.noise": "cosine"}},
            "fast": {"label": "fast", "decode_only_of": "b", "settings": {"eval.sampler": {"diffusion_steps": 2}}},
        },
    }  # fmt: skip
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**table, **changes}.items() if v is not None}, sort_keys=False))
    return path


class FakeVerbs:
    """Instead of training: row a is right half the time, others always; keeps what it ran; may fail or wait."""

    def __init__(self, fail: str = "", accuracy: float | None = None) -> None:
        self.ran: list[str] = []
        self.fail, self.accuracy, self.slots = fail, accuracy, set()
        self.most, self.now, self.lock = 0, 0, threading.Lock()

    def __call__(self, cell, slot, stop):
        with self.lock:
            self.ran.append(cell.name)
            self.slots.add(slot)
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.03)
        with self.lock:
            self.now -= 1
        if cell.name == self.fail:
            raise CellFailed("generate ended with exit code 1; end of log.txt:\n    no such thing")
        share = self.accuracy if self.accuracy is not None else 0.5 if cell.row == "a" else 1.0
        right = [float(i < share * ITEMS) for i in range(ITEMS)]
        statistics = {"accuracy": np.array([[x, 1.0] for x in right]), "calls_per_second": np.array([[4.0, 2.0]] * ITEMS)}
        folder = cell.folder / "eval"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {"uid": f"q{i}", "task": "qa", "split": "test", "statistics": {k: list(v[i]) for k, v in statistics.items()}}
            for i in range(ITEMS)
        ]
        (folder / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        values = {k: bootstrap(v, METRICS[k].total, 50) for k, v in statistics.items()}
        result = {"metrics": {f"qa/{k}": {**cards.value_to_json(v), "unit": "rate"} for k, v in values.items()}}
        config = to_plain(load_config([cell.folder / "cell.yaml"]))  # as the verbs do
        assert config == to_plain(cell.config)
        cards.write_card(folder / "card.json", cards.make_card(result, config=config, seeds={"run": cell.seed}))
        return dict.fromkeys(cell.verbs(), 0.1)


def call(*argv: str, runner: FakeVerbs | None = None) -> int:
    path = ["ttt", argv[0]]
    verb = module_of(path)
    return verb.run(parse(parser_of(path, verb), [str(a) for a in argv[1:]]), runner)


def test_a_table_from_nothing_and_again(world, capsys, caplog):
    caplog.set_level(logging.INFO)
    path, runner = write_table(world), FakeVerbs()
    assert call("ablate", path, "--out", "out", runner=runner) == 0
    assert runner.ran == ["a seed 1", "b seed 1", "fast seed 1", "a seed 2", "b seed 2", "fast seed 2"]
    printed = capsys.readouterr().out
    (plain,), (cosine,) = ([x for x in printed.splitlines() if x.startswith(row)] for row in ("plain", "cosine"))
    assert "50.0 ±0.0 [" in plain and "*" not in plain and cosine.endswith("100.0 ±0.0 [100.0, 100.0]*")
    assert printed.rstrip().endswith("=" * 100)
    assert "Mean ± sd over 2 seeds (1, 2); n = 12 items" in printed
    assert "Budget: equal updates." in printed and "Made up." in printed
    assert "[6/6] fast seed 2: done in" in caplog.text and "ETA 0:00:00" in caplog.text
    names = {p.name for p in (world / "out").iterdir()}
    tables = {"table.md", "table.tex", "table.csv", "table.txt"}
    assert names == {".lock", "cards", "cells", "plot.png", "frontier.png", "results.json"} | tables
    results = json.loads((world / "out/results.json").read_text())
    assert results["values"]["qa/accuracy"]["a"]["scores"] == [0.5, 0.5]
    assert results["values"]["qa/calls_per_second"]["fast"]["value"] == 2.0
    card = cards.read_card(world / "out/cards/fast-seed-2.json")
    assert (card["row"], card["seed"], card["decode_only_of"], card["config"]["run"]["seed"]) == ("fast", 2, "b", 2)
    assert card["config"]["eval"]["sampler"]["diffusion_steps"] == 2 and card["inputs"]["eval.examples[0]"]["digest"]
    assert card["config"]["eval"]["checkpoint"].endswith("b/seed-2") and "train_wall_s" not in card["timing"]
    assert (world / "out/cards" / card["items"]).resolve().is_file()
    again = FakeVerbs()
    assert call("ablate", path, "--out", "out", runner=again) == 0 and again.ran == []
    assert capsys.readouterr().out == printed


def test_a_failed_cell_is_told_and_the_others_go_on(world, capsys, caplog):
    path, runner = write_table(world), FakeVerbs(fail="b seed 1")
    assert call("ablate", path, "--out", "out", runner=runner) == 1
    assert "fast seed 1" not in runner.ran and "fast seed 2" in runner.ran
    assert "b seed 1: failed: generate ended with exit code 1" in caplog.text and "no such thing" in caplog.text
    assert "fast seed 1: failed: its training, b seed 1, failed" in caplog.text
    out = capsys.readouterr().out
    assert "cosine †" in out and "† cosine: seed 1 failed." in out and "† plain" not in out
    mended = FakeVerbs()
    assert call("ablate", path, "--out", "out", runner=mended) == 0 and mended.ran == ["b seed 1", "fast seed 1"]
    assert "†" not in capsys.readouterr().out


def test_only_seeds_jobs_and_settings(world, capsys):
    path, runner = write_table(world), FakeVerbs()
    asked = ["--seeds", "7,9", "--jobs", "2", "--only", "fast", "train.lr=1e-4"]
    assert call("ablate", path, "--out", "out", *asked, runner=runner) == 0
    assert sorted(runner.ran) == ["b seed 7", "b seed 9", "fast seed 7", "fast seed 9"]  # b: its training is needed
    assert runner.most == 2 and runner.slots == {0, 1}
    assert "† plain: seed 7 and 9 not run." in capsys.readouterr().out
    assert cards.read_card(world / "out/cards/b-seed-7.json")["config"]["train"]["lr"] == 1e-4
    for argv, message in ((["--only", "c"], "--only: no row named 'c'"), (["--seeds", "x"], "--seeds: a number of seeds"),
                          (["--seeds", "0"], "--seeds: a number >= 1"), (["--jobs", "-1"], "--jobs: must be >= 1")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            call("ablate", path, *argv)


def test_trainings_of_another_table_are_used_again(world, capsys, monkeypatch):
    monkeypatch.setattr("ttt.lab.trainings.is_trained", lambda folder, steps: folder.parent.name != "fast" and steps == 5)
    first = write_table(world)
    assert call("ablate", first, "--out", "out", runner=FakeVerbs()) == 0
    rows = {
        "same": {"settings": {"objective.noise": "cosine", "eval.limit": 6}},  # b's training, decoded otherwise
        "more": {"decode_only_of": "same", "settings": {"eval.sampler": {"diffusion_steps": 4}}},
        "other": {"settings": {"objective.noise": "cosine", "train.lr": 1.0e-5}},
    }
    second = first.rename(world / "second.yaml")
    write_table(world, rows=rows, baseline="same").rename(second)
    capsys.readouterr()
    assert call("ablate", second, "--out", "new", "--trainings", "out", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "same seed 2: decode with the training of out/cells/b/seed-2" in out and "other seed 1: train, decode, score" in out
    runner = FakeVerbs()
    assert call("ablate", second, "--out", "new", "--trainings", "out", runner=runner) == 0
    found = {name: cards.read_card(world / f"new/cards/{name}-seed-2.json") for name in ("same", "more", "other")}
    assert {n: c["config"]["eval"]["checkpoint"] for n, c in found.items()} == {
        "same": "out/cells/b/seed-2", "more": "out/cells/b/seed-2", "other": "",
    }  # fmt: skip
    assert "train_wall_s" not in found["same"]["timing"] and "train_wall_s" in found["other"]["timing"]
    # Where a cell takes its training from is not part of what it is: the same call without the folder has nothing to do.
    assert call("ablate", second, "--out", "new", runner=(again := FakeVerbs())) == 0 and again.ran == []


def test_trainings_that_are_no_use_are_told(world, monkeypatch):
    first = write_table(world)
    with pytest.raises(ConfigError, match="--trainings: nowhere: no cells of a table here; give the --out folder"):
        call("ablate", first, "--trainings", "nowhere")
    assert call("ablate", first, "--out", "out", "--only", "a", runner=FakeVerbs()) == 0
    with pytest.raises(ConfigError, match="--trainings: no training there is finished; run that table first"):
        call("ablate", first, "--out", "new", "--trainings", "out")
    monkeypatch.setattr("ttt.lab.trainings.is_trained", lambda folder, steps: True)
    message = r"none is a training of this table; nearest is out/cells/a/seed-1 to 'a seed 1' \(train.lr: "
    with pytest.raises(ConfigError, match=message):
        call("ablate", first, "--out", "new", "--trainings", "out", "--only", "a", "train.lr=1e-5")
    (world / "out/cells/a/seed-2/cell.json").write_text("{}")
    with pytest.raises(DataError, match="out/cells/a/seed-2/cell.json: not the description of a cell"):
        call("ablate", first, "--out", "new", "--trainings", "out")


def test_changed_settings_are_refused_and_overwrite_makes_only_those_again(world, capsys):
    path = write_table(world)
    assert call("ablate", path, "--out", "out", runner=FakeVerbs()) == 0
    rows = yaml.safe_load(path.read_text())["rows"]
    rows["b"]["settings"]["train.steps"] = 6
    write_table(world, rows=rows)
    message = r"cell 'b seed 1' was made with other settings \(train.steps: 5 -> 6\); 3 more cells too; give --overwrite"
    with pytest.raises(ConfigError, match=message):
        call("ablate", path, "--out", "out", runner=FakeVerbs())
    capsys.readouterr()
    assert call("ablate", path, "--out", "out", "--overwrite", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "4 of 6 cells to run" in out and "a seed 1: up to date" in out and "b seed 2: made again (train.steps: 5 -> 6)" in out
    marks = [world / f"out/cells/{row}/seed-1/checkpoints" for row in ("a", "b")]
    [m.mkdir() for m in marks]
    runner = FakeVerbs()
    assert call("ablate", path, "--out", "out", "--overwrite", runner=runner) == 0
    assert runner.ran == ["b seed 1", "fast seed 1", "b seed 2", "fast seed 2"]
    assert [m.exists() for m in marks] == [True, False]  # the old training is gone
    with (world / "test.jsonl").open("a") as more:
        more.write("\n")
    with pytest.raises(ConfigError, match=r"made with other settings \(inputs.eval.examples\[0\].digest: "):
        call("ablate", path, "--out", "out", runner=FakeVerbs())


def test_changed_decoding_keeps_the_training(world):
    path = write_table(world)
    assert call("ablate", path, "--out", "out", "--only", "a", runner=FakeVerbs()) == 0
    (world / "out/cells/a/seed-1/checkpoints").mkdir()
    runner = FakeVerbs()
    assert call("ablate", path, "eval.max_tokens=9", "--out", "out", "--only", "a", "--overwrite", runner=runner) == 0
    assert len(runner.ran) == 2 and (world / "out/cells/a/seed-1/checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": 3}, r"demo.yaml: sedes: no such key. Did you mean 'seeds'\?"),
        ({"title": None}, "title: missing"),
        ({"baseline": "aa"}, r"baseline: no row named 'aa'. Did you mean 'a'\?"),
        ({"metrics": ["qa/acuracy"]}, r"row 'a' has no metric 'qa/acuracy'. Did you mean 'qa/accuracy'\?"),
        ({"metrics": []}, "metrics: expected different metric keys"),
        ({"seeds": [1, 1]}, "a seed is there twice"),
        ({"base": ["nowhere.yaml"]}, "base: no such file: nowhere.yaml"),
        ({"splits": ["dev"]}, r"rows.a: eval.examples: \./dev.jsonl is missing"),
        ({"examples": ["x"]}, "give splits or examples, not both"),
        ({"settings": {"run.seed": 3}}, "settings: run.seed: is set for every cell"),
        ({"settings": {"train": {"stpes": 3}}}, r"rows.a: train.stpes: no such key.* Did you mean 'steps'"),
        ({"settings": {"data.train": "gone.jsonl"}}, "rows.a: data.train: gone.jsonl is missing"),
        ({"settings": {"tasks": ["asr"]}}, r"rows.a: .*test.jsonl: example 'q0' is of task 'qa'; tasks lists \['asr', "),
        ({"rows": {"a": {"label": "x"}, "b": {"label": "x"}}}, "rows.b.label: 'x' is also the label of row 'a'"),
        ({"rows": {"a": {"labl": "x"}}}, r"rows.a: labl: no such key. Did you mean 'label'\?"),
        ({"rows": {"a": {}, "../b": {}}}, "a row's name becomes a folder"),
        ({"rows": {"a": {}, "b": {"decode_only_of": "c"}}}, "rows.b.decode_only_of: no other row named 'c'"),
        ({"rows": {"a": {"settings": {"objective.noise": "cosin"}}}}, r"rows.a: objective.noise: no .* Did you mean 'cosine'\?"),
        (
            {"rows": {"a": {}, "b": {"decode_only_of": "a", "settings": {"train.lr": 1.0}}}},
            "rows.b: decode_only_of 'a', but train.lr: 2e-05 -> 1.0: only eval, judge and tasks may differ",
        ),
        (
            {"rows": {"a": {}, "b": {"decode_only_of": "a"}, "c": {"label": "c", "decode_only_of": "b"}}},
            "rows.c.decode_only_of: row 'b' trains nothing itself; name 'a'",
        ),
    ],
)
def test_bad_tables_are_refused_before_anything_runs(world, changes, message):
    runner = FakeVerbs()
    with pytest.raises((ConfigError, DataError, Exception), match=message) as error:
        call("ablate", write_table(world, **changes), "--out", "out", runner=runner)
    assert error.type.__module__ == "ttt.errors" and "\n" not in str(error.value)
    assert runner.ran == [] and not (world / "out").exists()


def test_interrupt_stops_in_order_and_the_same_call_goes_on(world):
    path = write_table(world)

    class Interrupted(FakeVerbs):
        def __call__(self, cell, slot, stop):
            if cell.name == "b seed 1":
                raise KeyboardInterrupt
            return super().__call__(cell, slot, stop)

    with pytest.raises(KeyboardInterrupt):
        call("ablate", path, "--out", "out", runner=Interrupted())
    assert [p.name for p in (world / "out/cards").iterdir()] == ["a-seed-1.json"]
    runner = FakeVerbs()
    assert call("ablate", path, "--out", "out", runner=runner) == 0 and runner.ran[0] == "b seed 1" and len(runner.ran) == 5


# ------------------------------------------------------------------------------------------------- child processes


def a_cell(world):
    return planning.plan(read_table(write_table(world)), world / "out")[0]


def script(world, body: str) -> tuple[str, ...]:
    (world / "verb.py").write_text("import sys, os, time, signal\n" + body)
    return (sys.executable, str(world / "verb.py"))


def test_children_get_their_share_and_their_failure_is_quoted(world, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("ttt.lab.runner.usable_cpus", lambda: 8)
    cell = a_cell(world)
    cell.prepare(False)
    body = "print(sys.argv[1:], os.environ['OMP_NUM_THREADS'], os.environ.get('CUDA_VISIBLE_DEVICES'))\nsys.exit(3)\n"
    run = Subprocesses(4, ("5", "6"), script(world, body))
    with pytest.raises(CellFailed, match=r"train ended with exit code 3; end of .*log.txt:\n") as error:
        run(cell, 3, Stop())
    assert f"['train', '--config', '{cell.folder / 'cell.yaml'}'] 2 6" in str(error.value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run.environment(0)["OMP_NUM_THREADS"] == "1"
    # A training that ends well without being finished (a signal from outside) must not be decoded.
    with pytest.raises(CellFailed, match="training stopped at step 0 of 5"):
        Subprocesses(1, (), script(world, ""))(cell, 0, Stop())


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_child_is_interrupted_and_when_in_a_hurry_ended(world, stubborn):
    cell = a_cell(world)
    cell.prepare(False)
    on_interrupt = "lambda *_: None" if stubborn else "lambda *_: (open('saved', 'w').close(), sys.exit(130))"
    body = f"signal.signal(signal.SIGINT, {on_interrupt})\nopen('up', 'w').close()\nwhile True: time.sleep(0.05)\n"
    stop = Stop()

    def interrupt():
        while not (world / "up").exists():
            time.sleep(0.02)
        stop.set()
        if stubborn:
            stop.hurry.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    begun = time.monotonic()
    with pytest.raises(Halted):
        Subprocesses(1, (), script(world, body))(cell, 0, stop)
    thread.join()
    assert (world / "saved").exists() is not stubborn and time.monotonic() - begun < 20


# ------------------------------------------------------------------------------------------------- once more


@pytest.fixture
def made(world, capsys):
    assert call("ablate", write_table(world), "--out", "out", runner=FakeVerbs()) == 0
    capsys.readouterr()
    return world / "out/cards/fast-seed-2.json"


def test_repro_inside_and_outside(made, world, capsys):
    runner = FakeVerbs()
    assert call("repro", made, "--out", "again", runner=runner) == 0
    assert runner.ran == ["fast seed 2"] and "identical" in capsys.readouterr().out
    cell = json.loads((world / "again/cell.json").read_text())
    assert cell["identity"]["config"]["run"]["seed"] == 2
    plain = yaml.safe_load((world / "again/cell.yaml").read_text())
    assert plain["eval"]["checkpoint"] == "" and plain["run"]["dir"] == "again"  # trained again, in a folder of its own
    with pytest.raises(ConfigError, match="again: holds a finished run; give --overwrite"):
        call("repro", made, "--out", "again")
    assert call("repro", made, "--out", "again", "--overwrite", runner=FakeVerbs(accuracy=0.75)) == 1
    out = capsys.readouterr().out
    assert "outside: 25.0 below the 95 % interval" in out and "1 of 2 values are inside" in out and "NOT REPRODUCED" in out


def test_repro_names_what_differs(made, world, capsys, caplog):
    card = json.loads(made.read_text())
    card["versions"]["torch"] = "0.1"
    made.write_text(json.dumps(card))
    assert call("repro", made, "--out", "again", "--dry-run") == 0
    assert "versions.torch: '0.1' -> " in caplog.text and "numbers may differ" in caplog.text
    assert "train -> generate -> score in again" in capsys.readouterr().out and not (world / "again").exists()
    with (world / "train.jsonl").open("a") as more:
        more.write("\n")
    with pytest.raises(DataError, match=r"data.train: train.jsonl has digest \w+, the card was made with \w+; bring that data"):
        call("repro", made, "--out", "again")
    (world / "train.jsonl").unlink()
    with pytest.raises(DataError, match="data.train: train.jsonl is missing"):
        call("repro", made, "--out", "again")
    card["config"] = {}
    made.write_text(json.dumps(card))
    with pytest.raises(DataError, match="config is empty; this card cannot be repeated"):
        call("repro", made)


# ------------------------------------------------------------------------------------------------- for real


def test_two_rows_two_seeds_on_the_toy_world(tmp_path, monkeypatch, capsys):
    """The verbs themselves, in this process; then one cell of it again, which is bit for bit the same."""
    spec = importlib.util.spec_from_file_location("toy_data", ROOT / "egs/toy/local/data.py")
    toy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy_data", toy)
    spec.loader.exec_module(toy)
    toy.make(tmp_path / "corpus", 1, 40)
    monkeypatch.chdir(tmp_path)
    folders = ["data.corpus=corpus", "data.dir=data"]
    for stage in ("tokenize", "examples"):
        assert main([stage, "--config", str(ROOT / "egs/toy/conf/ttt.yaml"), *folders]) == 0
    settings = {
        "data": {"corpus": "corpus", "dir": "data"}, "train": {"steps": 3, "generate_items": 0, "tensorboard": False},
        "eval": {"limit": 3, "samples": 0, "bootstrap": 50, "max_tokens": 30},
    }  # fmt: skip
    table = {
        "title": "Toy", "base": [str(ROOT / "egs/toy/conf/ttt.yaml")], "settings": settings, "seeds": 2, "baseline": "ttt",
        "metrics": ["tts/judged_wer", "qa/accuracy"], "splits": ["test"], "resamples": 50, "budget": "equal updates",
        "rows": {"ttt": {}, "cosine": {"settings": {"objective.noise": "cosine"}}},
    }  # fmt: skip
    Path("toy.yaml").write_text(yaml.safe_dump(table, sort_keys=False))

    def in_process(cell, slot, stop):
        for name in cell.verbs():
            assert main([name, "--config", str(cell.folder / "cell.yaml")]) == 0
        return dict.fromkeys(cell.verbs(), 0.0)

    assert call("ablate", "toy.yaml", "--out", "out", runner=in_process) == 0
    assert "Budget: equal updates; measured: 3 updates, " in capsys.readouterr().out
    card = cards.read_card("out/cards/cosine-seed-2.json")
    assert card["training"]["updates"] == 3 and card["training"]["tokens"] > 0 and card["timing"]["train_s"] >= 0
    assert card["metrics"]["qa/accuracy"]["n"] == 3 and card["limited"]
    assert call("repro", "out/cards/cosine-seed-2.json", "--out", "again", runner=in_process) == 0
    repeated = cards.read_card("again/card.json")
    timed = ("rtf", "first_block_latency")
    for key, entry in card["metrics"].items():
        if key.rpartition("/")[2] not in timed:
            assert repeated["metrics"][key]["value"] == entry["value"], key


SHIPPED = sorted((ROOT / "egs/mini_talk/ablations").glob("*.yaml"))


def test_tables_are_shipped():
    names = {p.stem for p in SHIPPED}
    assert names >= {"paper_table", "dual_stream", "schedules", "weightings", "samplers", "mask_context"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_tables_load(path, monkeypatch):
    """Every cell's configuration, without the data; metric keys are those of the tasks; rows differ."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(planning, "inputs_of", lambda config, digests: {})
    monkeypatch.setattr(planning, "_check_examples", lambda config, checked: None)
    table = dataclasses.replace(read_table(path), seeds=(1,))
    cells = planning.plan(table, Path("out"))
    assert len({c.digest() for c in cells}) == len(cells) == len(table.rows)
    for cell in cells:
        keys = {f"{t.label}/{m}" for t in cell.config.tasks for m in t.metrics}
        assert {key.removeprefix("unseen_voice/") for key in table.metrics} <= keys
        if Path("egs/mini_talk/ablations/conf/world.yaml") in table.base:
            assert all(t.text_chunk > 0 and t.audio_chunk > 0 for t in cell.config.tasks), "several spans an answer"
            assert cell.config.eval.examples == ["egs/mini_talk/exp/full/data_interleaved/test.jsonl"]
