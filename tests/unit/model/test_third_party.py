"""An architecture that `ttt` does not know, and one that is no language model: every verb works with it or refuses in one line."""

from __future__ import annotations

import json

import pytest

from tests.conftest import tiny_tokenizer
from tests.tiny_runs import make_run, talk
from tests.unit.valle.small_valle import network as valle
from ttt.api import load, open_model, open_run
from ttt.cli.main import main
from ttt.config.schema import ModelSection
from ttt.errors import ConfigError
from ttt.interfaces import LanguageModel
from ttt.model.arch import check_arch, members, missing_members


@pytest.fixture
def small_run(tmp_path, registered_small_lm):
    """A run folder of the architecture of examples/plugin, untrained."""
    run = make_run(tmp_path / "small", "ttt", model={"arch": {"name": "small_lm"}})
    registered_small_lm.SmallLM().start(ModelSection(), tiny_tokenizer(), 1).save(run / "model")
    return run


@pytest.fixture
def valle_run(tmp_path):
    """A run folder of the architecture valle, untrained; its configuration says nothing against the verbs."""
    run = make_run(tmp_path / "valle", "ttt")
    for file in (run / "model").iterdir():
        file.unlink()
    valle().save(run / "model")
    return run


def test_it_chats_and_answers(small_run, monkeypatch, capsys):
    code, shown = talk(monkeypatch, capsys, small_run, ["a cat", "/room"])
    assert code == 0 and "Traceback" not in shown
    model = load(small_run, sound=False)
    assert model.generate("a cat", uid="u").generation.ids == model.generate("a cat", uid="u").generation.ids
    assert type(model.lm).__name__ == "SmallNetwork" and model.lm.max_positions == 1024


def test_it_is_trained_and_examined(small_run, tmp_path, capsys):
    out = tmp_path / "trained"
    argv = [
        "--config", str(small_run / "config.yaml"), f"run.dir={out}", f"data.train={small_run / 'examples.jsonl'}",
        f"data.tokenizer={small_run / 'model'}", "data.row_tokens=64", "data.batch_tokens=64", "train.steps=3",
        "run.device=cpu", "objective.strategies=[]",
    ]  # fmt: skip
    assert main(["train", *argv]) == 0
    capsys.readouterr()
    assert main(["doctor", str(out), "--json"]) in (0, 1)
    named = {f["name"]: f["status"] for f in json.loads(capsys.readouterr().out)["findings"]}
    assert named["model/new_rows"].strip() in ("ok", "warn", "FAULT"), named


def test_its_answers_have_a_likelihood(small_run, capsys):
    argv = ["--config", str(small_run / "config.yaml"), f"eval.examples=[{small_run / 'examples.jsonl'}]"]
    assert main(["likelihood", *argv, "--draws", "2", f"eval.checkpoint={small_run / 'model'}"]) == 0
    assert len((small_run / "eval/likelihood.items.jsonl").read_text().splitlines()) == 3


def test_samplers_are_compared_and_attention_is_refused(small_run, capsys):
    files = ["--examples", str(small_run / "examples.jsonl")]
    assert main(["inspect", "samplers", str(small_run), *files, "--samplers", "own"]) == 0
    capsys.readouterr()
    assert main(["inspect", "attention", str(small_run), *files]) == 2
    error = capsys.readouterr().err
    assert "model: architecture 'small_lm' shows no attention maps" in error and error.count("\n") == 1


def test_it_answers_text_benchmarks_and_streams(small_run, tmp_path, capsys):
    questions = tmp_path / "q"
    questions.mkdir()
    record = {"question": "a cat?", "choices": ["a", "cat", "sat", "mat"], "answer": 1, "error_type": "ok"}
    (questions / "birds.jsonl").write_text(json.dumps(record) + "\n")
    model = ["--model", str(small_run), "--out", str(tmp_path / "out")]
    assert main(["eval", "mmlu-redux", str(questions), *model]) == 0
    assert json.loads((tmp_path / "out/card.json").read_text())["metrics"]["birds/acc"]["n"] == 1
    capsys.readouterr()
    assert main(["stream", str(small_run), "--text", "a cat", "--no-sound", "--warmup", "0"]) == 0
    assert capsys.readouterr().out.startswith("text: ")


def test_a_network_of_frames_is_refused_where_text_is_needed(valle_run, capsys):
    files = ["--examples", str(valle_run / "examples.jsonl")]
    config = [
        "--config", str(valle_run / "config.yaml"), f"eval.examples=[{files[1]}]", f"eval.checkpoint={valle_run / 'model'}",
    ]  # fmt: skip
    samplers = ["inspect", "samplers", str(valle_run), *files, "--samplers", "own"]
    for argv, line in (
        (["chat", str(valle_run)], "model: architecture 'valle' writes no text; use 'ttt continue'"),
        (samplers, "model: architecture 'valle' writes no text"),
        (["inspect", "attention", str(valle_run), *files], "model: architecture 'valle' shows no attention"),
        (["likelihood", *config], "model: architecture 'valle' writes no text"),
    ):
        assert main(argv) == 2, argv
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1, error


def test_protocols_are_asked_by_name(valle_run):
    config, folder = open_run(valle_run)
    network = open_model(config, folder)
    assert not network.training and set(missing_members(network, LanguageModel)) == {
        "head", "hidden", "hidden_of_rows", "token_tables"
    }  # fmt: skip
    assert {"save", "prepare", "tokenizer", "eval"} <= set(members(LanguageModel))
    with pytest.raises(ConfigError, match="model: architecture 'valle' writes no text; do that$"):
        open_model(config, folder, LanguageModel, instead="do that")


def test_what_works_with_one_architecture_works_with_those_like_it(registered_small_lm):
    from ttt.registry.families import ARCH

    for wanted in ("", "causal_lm", "small_lm"):
        check_arch(ARCH.build("small_lm", "model.arch"), wanted, "objective 'x'")
    with pytest.raises(ConfigError, match="works with architecture 'valle', the run has 'small_lm'; set model.arch=valle"):
        check_arch(ARCH.build("small_lm", "model.arch"), "valle", "objective 'x'")
