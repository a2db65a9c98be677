"""MMLU-Redux from a small folder of our own: reading, corrections, prompts, parsing, scores by hand, refusals."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.conftest import tiny_model, tiny_tokenizer
from ttt.cli.main import main
from ttt.errors import ConfigError, DataError
from ttt.eval.cards import read_card
from ttt.masks.library import Full, Hybrid
from ttt.objective.library import Nar, TtT
from ttt.textbench.mmlu_redux import (
    GROUPS,
    LETTERS,
    Protocol,
    Question,
    ask,
    parse,
    prompt,
    read_folder,
    summarize,
)
from ttt.textbench.scorer import ScorerSettings, TextScorer
from ttt.textbench.texts import encode

ROW = {"question": "which one", "choices": ["cat", "dog", "fox", "mat"], "answer": 1, "error_type": "ok", "correct_answer": None}


def rows(n, seed=0, **more):
    rng = np.random.default_rng(seed)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "cat", "sat", "mat"]
    return [
        {**ROW, "question": " ".join(rng.choice(words, 4)), "choices": [" ".join(rng.choice(words, 2)) + str(i) for i in range(4)],
         "answer": int(rng.integers(4)), **more} for _ in range(n)
    ]  # fmt: skip


def write(folder, name, records):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, records[0])
            writer.writeheader()
            writer.writerows(records)
    elif path.suffix == ".arrow":  # as `datasets` saves it
        pa = pytest.importorskip("pyarrow")
        table = pa.Table.from_pylist(records)
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        (folder / "dataset_info.json").write_text("{}")
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist(records), path)
    return path


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=3).eval()


@pytest.fixture
def questions(tmp_path):
    write(tmp_path / "q", "anatomy.jsonl", rows(12))
    write(tmp_path / "q", "philosophy.csv", rows(8, 1))
    return tmp_path / "q"


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.parquet", "x/test-00000.parquet", "x/data.csv",
                                  "x/data-00000-of-00001.arrow", "x/test/0000.parquet", "x/test/data-00000-of-00001.arrow"])
def test_every_kind_of_file_gives_the_same_questions(tmp_path, name):
    folder = tmp_path / "f"
    write((folder / name).parent, (folder / name).name, rows(5))
    found = read_folder(folder, [], Protocol())
    assert [(q.question, list(q.choices), q.answers) for q in found.questions] == [
        (r["question"], r["choices"], (r["answer"],)) for r in rows(5)
    ]
    assert {q.subject for q in found.questions} == {"x"} and found.files == [folder / name]


def test_only_the_test_split_of_a_folder_is_read(tmp_path):
    for split, n in (("test-0.jsonl", 3), ("test-1.jsonl", 2), ("dev.jsonl", 4)):
        write(tmp_path / "x", split, rows(n, n))
    assert len(read_folder(tmp_path, [], Protocol()).questions) == 5


@pytest.mark.parametrize(
    "faults, told, answers",
    [
        ("ok", None, (1,)), ("ok", "3", (1,)),
        ("wrong_groundtruth", "3", (3,)), ("wrong_groundtruth", "D", (3,)), ("wrong_groundtruth", "fox", (2,)),
        ("wrong_groundtruth", "some bird", None), ("wrong_groundtruth", None, None),
        ("multiple_correct_answers", "A, C", (0, 2)), ("multiple_correct_answers", "[0, 2]", (0, 2)),
        ("multiple_correct_answers", "B and D", (1, 3)), ("multiple_correct_answers", "", None),
        ("no_correct_answer", None, None), ("bad_question_clarity", "2", None), ("expert", None, None),
    ],
)  # fmt: skip
def test_corrections(tmp_path, faults, told, answers):
    write(tmp_path, "x.jsonl", [ROW, {**ROW, "error_type": faults, "correct_answer": told}])
    original = read_folder(tmp_path, [], Protocol())
    assert [q.answers for q in original.questions] == [(1,), (1,)] and not original.left_out  # findings ignored
    corrected = read_folder(tmp_path, [], Protocol(labels="corrected"))
    assert [q.answers for q in corrected.questions][1:] == ([] if answers is None else [answers])
    assert dict(corrected.left_out) == ({f"no usable correction of {faults}": 1} if answers is None else {})
    sound = read_folder(tmp_path, [], Protocol(only_ok=True))
    assert dict(sound.left_out) == ({} if faults == "ok" else {f"error_type {faults}": 1})


def test_prompts():
    q = Question("u", "x", " What? ", ("cat", "dog", "fox", "mat"), (1,))
    assert prompt(q, Protocol()).split("\n") == [
        "Multiple Choice question:  What? ", "- cat=A", "- dog=B", "- fox=C", "- mat=D", "",
        "Respond with only the letter of the correct answer.",
    ]  # fmt: skip
    assert prompt(q, Protocol("generate", instruction="Say it:")).split("\n") == [
        "What?", "A. cat", "B. dog", "C. fox", "D. mat", "Say it:",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "written, letter, any_, whole",
    [
        ("B", 1, 1, 1), (" (b). ", None, None, 1), ("The answer is D.", 3, 3, None), ("Answer: C", 2, 0, None),
        ("BECAUSE", None, 1, None), ("", None, None, None), ("A or B", 0, 0, None), ("AB", None, 0, None),
    ],
)  # fmt: skip
def test_parsing(written, letter, any_, whole):
    assert (parse(written, "letter"), parse(written, "any"), parse(written, "whole")) == (letter, any_, whole)


@pytest.mark.parametrize("objective", [TtT(mask=Hybrid()), Nar(mask=Full())], ids=["chain", "diffusion"])
def test_letters_are_the_likeliest_of_four_logits(model, questions, objective):
    """Against one whole-row forward per question, even when a code is the likeliest of all ids."""
    from tests.unit.textbench.test_scorer import slow_logits
    from ttt.textbench.chain import stream_of
    from ttt.textbench.texts import Pair

    v = tiny_tokenizer().vocab
    loud = tiny_model(seed=3, bias={v.code_start: 30.0}).eval()
    scorer = TextScorer(loud, objective, None, ScorerSettings())
    chosen = read_folder(questions, [], Protocol()).questions
    found = ask(scorer, chosen, Protocol())
    letters = [scorer.tokenizer.encode(x)[0] for x in LETTERS]
    for q, record in zip(chosen, found):
        ids = encode(scorer.tokenizer, scorer.chat([{"role": "user", "content": prompt(q, Protocol())}]))
        if scorer.diffusion:
            stream = stream_of(Pair(tuple(ids), (v.mask_id,)), v)
            runs = np.arange(1, len(stream) + 1, dtype=np.int32)
            stream = dataclasses.replace(stream, kind=np.ones_like(stream.kind), run_id=runs)
        else:
            stream = stream_of(Pair(tuple(ids), (0,)), v, last=False)
        logits = slow_logits(loud, objective.mask, stream)[-1]
        assert int(logits.argmax()) == v.code_start
        assert record["predicted"] == int(logits[letters].argmax())
        assert record["statistics"]["acc"] == [float(record["predicted"] in q.answers), 1.0]
    assert len({r["predicted"] for r in found}) > 1 and not any(r["statistics"]["unreadable"][0] for r in found)


def test_averages_by_question_and_by_subject():
    def record(subject, right):
        return {"task": subject, "statistics": {"acc": [float(right), 1.0], "unreadable": [0.0, 1.0]}}

    made = [record("anatomy", r) for r in (1, 1, 0, 1)] + [record("virology", r) for r in (0, 1)] + [record("own_subject", 0)]
    found = summarize(made, 500)
    assert found["anatomy/acc"]["value"] == 0.75 and found["stem/acc"]["value"] == 0.75 and found["other/acc"]["value"] == 0.5
    assert found["mmlu_redux/acc"]["value"] == pytest.approx(4 / 7)
    assert found["mmlu_redux/macro_acc"]["value"] == pytest.approx((0.75 + 0.5 + 0) / 3)
    assert found["mmlu_redux/macro_acc"]["low"] < (0.75 + 0.5) / 3 < found["mmlu_redux/macro_acc"]["high"]
    assert "own_subject/acc" in found and found["mmlu_redux/unreadable"]["higher_is_better"] is False


def test_the_subjects_are_those_of_mmlu():
    assert len(GROUPS) == 57
    assert [list(GROUPS.values()).count(g) for g in ("stem", "other", "social_sciences", "humanities")] == [19, 13, 12, 13]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model(seed=3).save(out)
    return out


@pytest.mark.parametrize("protocol", ["letters", "generate"])
def test_verb(folder, questions, tmp_path, protocol, model, capsys):
    out = tmp_path / "out"
    call = ["eval", "mmlu-redux", str(questions), "--model", str(folder), "--out", str(out), "--protocol", protocol]
    call += ["--parse", "any", "--max-tokens", "6"] if protocol == "generate" else []
    assert main(call) == 0
    shown = capsys.readouterr().out
    card = read_card(out / "card.json")
    scorer = TextScorer(model, TtT(mask=Hybrid()), None, ScorerSettings(batch_tokens=1, batch_size=1, max_tokens=6))
    chosen = read_folder(questions, [], Protocol()).questions
    right = [r["statistics"]["acc"][0] for r in ask(scorer, chosen, Protocol(protocol, parse="any"))]
    assert card["metrics"]["mmlu_redux/acc"]["value"] == np.mean(right) and card["metrics"]["anatomy/acc"]["n"] == 12
    assert card["metrics"]["mmlu_redux/macro_acc"]["value"] == pytest.approx((np.mean(right[:12]) + np.mean(right[12:])) / 2)
    assert card["decode"]["protocol"]["labels"] == "original" and len(card["data"]) == 2
    with (out / "predictions_tiny_all.csv").open(newline="") as lines:
        table = list(csv.DictReader(lines))
    assert [r["correct"] == "True" for r in table] == [bool(r) for r in right]
    assert table[0]["ground_truth"] == LETTERS[int(table[0]["ground_truth_idx"])] and table[0]["corruptions"] == "ok"
    assert "mmlu_redux" in shown and "macro_acc" in shown
    assert main(call) == 0 and capsys.readouterr().out == shown
    assert main([*call, "--only-ok"]) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{q}", "--subject", "anatomi"], "has no 'anatomi'. Did you mean 'anatomy'"),
        (["{q}", "--protocol", "letter"], "--protocol: 'letter' is none of letters, generate. Did you mean 'letters'"),
        (["{q}", "--labels", "new"], "--labels: 'new' is none of"),
        (["/nowhere"], "/nowhere: no such folder of questions"),
        (["{bad}"], "x.jsonl:2: answer must be 0-3 or A-D, got 7"),
        (["{q}", "--protocol", "generate", "objective=nar"], "eval.sampler.canvas"),
        (["{q}", "--template", "chatml"], "'chatml' is none of ttt, qwen3"),
    ],
)
def test_refusals_come_before_the_model(folder, questions, tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("ttt.textbench.benchmarks.make_scorer", lambda *a: pytest.fail("a model was loaded"))
    write(tmp_path / "bad", "x.jsonl", [ROW, {**ROW, "answer": 7}])
    given = [a.format(q=questions, bad=tmp_path / "bad") for a in arguments]
    assert main(["eval", "mmlu-redux", *given, "--model", str(folder), "--out", str(tmp_path / "o")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "record, message",
    [
        ({"question": "a"}, "needs 'question', 'choices' and 'answer'"),
        ({**ROW, "choices": ["a", "b"]}, "choices must be a list of four texts, got 2"),
        ({**ROW, "choices": "a, b"}, "choices must be a list of four texts, got 'a, b'"),
        ([1], "needs 'question'"),
    ],
)
def test_records_that_are_no_questions(tmp_path, record, message):
    write(tmp_path, "x.jsonl", [ROW, record])
    with pytest.raises(DataError, match=f"x.jsonl:2: .*{message}"):
        read_folder(tmp_path, [], Protocol())


def test_choices_printed_by_numpy_are_read(tmp_path):
    write(tmp_path, "x.csv", [{**ROW, "choices": "['a b' 'c'\n 'd' \"e's\"]"}])
    assert read_folder(tmp_path, [], Protocol()).questions[0].choices == ("a b", "c", "d", "e's")


def test_a_tokenizer_that_splits_letters_is_refused(model, monkeypatch):
    scorer = TextScorer(model, TtT(mask=Hybrid()), None, ScorerSettings())
    monkeypatch.setattr(type(scorer.tokenizer), "encode", lambda self, text: [1, 2])
    with pytest.raises(DataError, match="splits 'A' into several tokens"):
        ask(scorer, [Question("u", "x", "q", ("a", "b", "c", "d"), (1,))], Protocol())


def test_a_plain_text_model_is_asked_by_its_own_vocabulary(tmp_path, questions):
    """A Hugging Face folder without speech tokens: the rows added in memory take no probability."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.unit.cli.test_tokenizer_verb import plain_bpe
    from ttt.textbench.opening import load_model, read_config

    plain = plain_bpe(["the quick brown fox jumps over the lazy dog"] * 3)
    config = AutoConfig.for_model(
        "qwen2", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=plain.get_vocab_size(), tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(config).eval()
    hf.save_pretrained(tmp_path / "m")
    plain.save(str(tmp_path / "m/tokenizer.json"))
    config = read_config(str(tmp_path / "m"), [], ["run.device=cpu"], [])
    made, own = load_model(tmp_path / "m", config, "text")
    assert own == plain.get_vocab_size() < made.tokenizer.vocab.size
    scorer = TextScorer(made, config.objective, None, ScorerSettings(), own)
    ids = plain.encode("the lazy dog").ids
    with torch.no_grad():
        logs = hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    n = len(plain.encode("the lazy").ids)
    total = sum(float(logs[i - 1, ids[i]]) for i in range(n, len(ids)))
    assert scorer.loglikelihood([("the lazy", " dog")])[0].logprob == pytest.approx(total, abs=1e-4)
    with pytest.raises(ConfigError, match="is a text model, so there is nothing else"):
        load_model(tmp_path / "m", config, "full")
    out = tmp_path / "o"
    assert main(["eval", "mmlu-redux", str(questions), "--model", str(tmp_path / "m"), "--out", str(out), "run.device=cpu"]) == 0
    assert main(["eval", "mmlu-redux", str(questions), "--model", str(tmp_path / "m")]) == 2  # results need a place


def test_a_run_says_how_it_is_read_and_reports_what_was_found(questions, tmp_path, capsys):
    run = tmp_path / "run"
    tiny_model(seed=3).save(run / "model")
    (run / "config.yaml").write_text("objective: {name: nar}\nrun: {device: cpu}\n")
    assert main(["eval", "mmlu-redux", str(questions), "--model", str(run), "--limit", "3"]) == 0
    card = read_card(run / "eval/mmlu-redux-letters/card.json")
    assert card["decode"]["objective"] == "nar" and card["decode"]["mask"]["name"] == "full"
    assert card["name"] == "mmlu-redux-letters"
    assert card["limited"] == "first 3 items of each task" and card["metrics"]["philosophy/acc"]["n"] == 3
    capsys.readouterr()
    assert main(["report", f"run.dir={run}"]) == 0
    shown = capsys.readouterr().out
    assert "anatomy" in shown and "macro_acc" in shown and "first 3 items" in shown
    assert "mmlu-redux-letters/anatomy/acc" in json.loads((run / "report.json").read_text())
