"""Local tasks in lm-evaluation-harness's own format, offline: scores against a computation by hand.

Needs the package lm_eval (an extra); everything that does not is in the other test_harness files.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import tiny_model, tiny_tokenizer

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from ttt.cli.main import main
from ttt.errors import ConfigError, DataError
from ttt.eval.cards import read_card
from ttt.masks.library import Full, Hybrid
from ttt.objective.library import Nar, TtT
from ttt.textbench.harness_tasks import check_documents, choose, load, task_digest
from ttt.textbench.scorer import ScorerSettings, TextScorer
from ttt.textbench.texts import encode, encode_pair, windows

TASKS = Path(__file__).parent / "harness_tasks"


@pytest.fixture(autouse=True, scope="session")
def offline(tmp_path_factory):
    """No network, and caches that go away."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model folder with weights."""
    out = tmp_path_factory.mktemp("model") / "m"
    tiny_model(seed=3).save(out)
    return out


def documents(name):
    return [json.loads(line) for line in (TASKS / name).read_text().splitlines()]


def by_hand_choices(scorer, prompt):
    """(right, right by length) of the fifty questions: sums of log p, largest wins."""
    right, normed = [], []
    for d in documents("choices.jsonl"):
        scores = np.array([scorer.loglikelihood([(prompt.format(**d), f" {o}")])[0].logprob for o in d["options"]])
        right.append(scores.argmax() == d["gold"])
        normed.append((scores / [len(o) for o in d["options"]]).argmax() == d["gold"])
    return np.array(right, float), np.array(normed, float)


def run(folder, out, *arguments):
    return main(["eval", "lm-eval", "--model", str(folder), "--out", str(out), "--task-dir", str(TASKS), *map(str, arguments)])


def test_scores_equal_a_computation_by_hand(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(folder, out, "--tasks", "tiny_choice", "tiny_write", "tiny_text", "eval.bootstrap=200") == 0
    shown = capsys.readouterr().out
    card = read_card(out / "card.json")
    scorer = TextScorer(tiny_model(seed=3), TtT(mask=Hybrid()), None, ScorerSettings(batch_tokens=1))
    right, normed = by_hand_choices(scorer, "Q: {question}\nA:")
    acc, norm = card["metrics"]["tiny_choice/acc"], card["metrics"]["tiny_choice/acc_norm"]
    assert acc["value"] == right.mean() and norm["value"] == normed.mean() and acc["n"] == 50
    assert 0 < acc["low"] < acc["value"] < acc["high"] < 1 and acc["unit"] == "rate" and acc["higher_is_better"]
    found = []
    for d in documents("answers.jsonl"):
        (written,) = scorer.generate([(d["question"], {"until": ["q"], "max_gen_toks": 5})])
        letters = [c for c in written if "a" <= c <= "z"]
        found.append((written.lower() == d["answer"], letters[-1:] == [d["answer"]]))
    assert card["metrics"]["tiny_write/exact_match"]["value"] == np.mean([f[0] for f in found])
    assert card["metrics"]["tiny_write/exact_match[last_letter]"]["value"] == np.mean([f[1] for f in found]) > 0
    texts = [d["question"] for d in documents("choices.jsonl")]
    nats = [
        sum(scorer.score([p])[0].logprob for p in windows(encode(scorer.tokenizer, t), scorer.tokenizer.vocab.pad_id, 1024))
        for t in texts
    ]
    perplexity = np.exp(-sum(nats) / sum(len(t.split()) for t in texts))
    entry = card["metrics"]["tiny_text/word_perplexity"]
    assert entry["value"] == pytest.approx(perplexity, rel=1e-5) and entry["low"] < entry["value"] < entry["high"]
    # what the numbers rest on
    told = card["decode"]["tasks"]["tiny_choice"]
    assert told["n"] == told["of"] == 50 and told["shots"] == 0 and len(told["digest"]) == 16
    assert card["versions"]["lm_eval"] and card["seeds"] == {"run": 1} and card["limited"] == ""
    assert set(card["data"]) == {"tiny_choice.yaml", "tiny_write.yaml", "tiny_text.yaml", "choices.jsonl", "answers.jsonl"}
    assert 0 < card["metrics"]["text/speech_mass"]["value"] < 1
    assert "tiny_choice" in shown and "acc_norm" in shown
    items = [json.loads(line) for line in (out / "questions.jsonl").read_text().splitlines()]
    mine = [i for i in items if i["task"] == "tiny_choice"]
    assert [i["statistics"]["acc"] for i in mine] == [[r, 1.0] for r in right]
    assert len(items) == 150
    assert run(folder, out, "--tasks", "tiny_choice", "--dry-run") == 0
    assert capsys.readouterr().out == f"tiny_choice: 50 of 50 documents, multiple_choice, digest {told['digest']}\n"
    # a second call does nothing; other settings ask
    assert run(folder, out, "--tasks", "tiny_choice", "tiny_write", "tiny_text", "eval.bootstrap=200") == 0
    assert capsys.readouterr().out == shown
    assert run(folder, out, "--tasks", "tiny_choice") == 2
    assert "made with other settings" in capsys.readouterr().err


def test_a_file_a_tag_and_a_group(folder, tmp_path):
    assert run(folder, tmp_path / "a", "--tasks", TASKS / "tiny_choice.yaml", "--limit", "7") == 0
    card = read_card(tmp_path / "a/card.json")
    assert card["metrics"]["tiny_choice/acc"]["n"] == 7 and card["limited"] == "first 7 items of each task"
    assert card["decode"]["tasks"]["tiny_choice"]["of"] == 50
    assert run(folder, tmp_path / "b", "--tasks", "tiny_group") == 0
    both = read_card(tmp_path / "b/card.json")["metrics"]
    whole, half, group = (both[f"{n}/acc"] for n in ("tiny_choice", "tiny_half", "tiny_group"))
    assert half["n"] == 20 and group["n"] == 70
    assert group["value"] == pytest.approx((50 * whole["value"] + 20 * half["value"]) / 70)
    assert group["low"] < group["value"] < group["high"] and group["high"] - group["low"] < half["high"] - half["low"]
    assert run(folder, tmp_path / "c", "--tasks", "tiny_tag", "--dry-run") == 0 and not (tmp_path / "c").exists()


def test_chat_and_shots_change_what_is_asked(folder, tmp_path):
    prompts = {}
    for name, more in (("plain", ()), ("chat", ("--chat", "--system", "be brief")), ("shots", ("--shots", "2"))):
        assert run(folder, tmp_path / name, "--tasks", "tiny_choice", "--limit", "3", *more) == 0
        prompts[name] = json.loads((tmp_path / name / "questions.jsonl").read_text().splitlines()[0])["prompt"]
    question = documents("choices.jsonl")[0]["question"]
    assert prompts["plain"] == f"Q: {question}\nA:"
    assert prompts["shots"].endswith("\n\n" + prompts["plain"]) and prompts["shots"].count("Q: ") == 3
    assert read_card(tmp_path / "shots/card.json")["decode"]["tasks"]["tiny_choice"]["shots"] == 2
    assert prompts["chat"] == (
        f"<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nQ: {question}\nA:<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_diffusion_model_is_asked_by_the_bound(folder, tmp_path):
    call = ("--tasks", "tiny_choice", "tiny_write", "--limit", "4", "--draws", "4", "--group", "4", "objective=nar")
    assert run(folder, tmp_path / "o", *call) == 2  # no sampler that can write answers
    sampler = "eval.sampler={name: blockwise, canvas: answer, block_length: 4, gen_length: 8, diffusion_steps: 8}"
    assert run(folder, tmp_path / "o", *call, sampler) == 0
    card = read_card(tmp_path / "o/card.json")
    assert card["decode"]["draws"]["draws"] == 4 and card["decode"]["objective"] == "nar"
    assert "text/speech_mass" not in card["metrics"]
    from ttt.likelihood import Draws

    scorer = TextScorer(
        tiny_model(seed=3), Nar(mask=Full()), None,
        ScorerSettings(draws=Draws(4, "spread", 4), batch_tokens=1),
    )  # fmt: skip
    right = [
        np.argmax([s.logprob for s in scorer.loglikelihood([(f"Q: {d['question']}\nA:", f" {o}") for o in d["options"]])])
        == d["gold"]
        for d in documents("choices.jsonl")[:4]
    ]
    assert card["metrics"]["tiny_choice/acc"]["value"] == np.mean(right)


@pytest.mark.parametrize(
    "tasks, message",
    [
        (["tiny_choise"], "no task, group or tag named 'tiny_choise'. Did you mean 'tiny_choice'?"),
        (["/nowhere/x.yaml"], "/nowhere/x.yaml: no such task file"),
        ([], "--tasks: missing"),
        (["{bad}/broken.yaml"], "broken.yaml: not a task file"),
        (["{bad}/absent.yaml"], "absent_data.jsonl: no such data file"),
        (["{bad}/label.yaml"], "task 'label', document 3: ValueError: the answer 9 is none of its 4 choices"),
        (["{bad}/field.yaml"], "field"),
    ],
)
def test_bad_tasks_are_refused_before_a_model_is_loaded(folder, tmp_path, tasks, message, capsys, monkeypatch):
    monkeypatch.setattr("ttt.textbench.benchmarks.make_scorer", lambda *a: pytest.fail("a model was loaded"))
    # the harness's own collection takes many seconds to read
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **k: manager(**{**k, "include_defaults": False}))
    (tmp_path / "broken.yaml").write_text("task: [")
    good = (TASKS / "tiny_choice.yaml").read_text()
    (tmp_path / "absent.yaml").write_text(good.replace("choices.jsonl", "absent_data.jsonl"))
    rows = documents("choices.jsonl")
    rows[3]["gold"] = 9
    (tmp_path / "wrong.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "label.yaml").write_text(good.replace("choices.jsonl", "wrong.jsonl").replace("tiny_choice", "label"))
    field = good.replace("choices.jsonl", str(TASKS / "choices.jsonl")).replace("tiny_choice", "field")
    (tmp_path / "field.yaml").write_text(field.replace("{{options}}", "{{opinions}}"))
    asked = [t.format(bad=tmp_path) for t in tasks]
    code = main(["eval", "lm-eval", "--model", str(folder), "--out", str(tmp_path / "o"), "--task-dir", str(TASKS),
                 *(["--tasks", *asked] if asked else [])])  # fmt: skip
    told = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and message in told[-1] and not (tmp_path / "o").exists()


def test_two_owners_of_a_name_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text((TASKS / "tiny_choice.yaml").read_text())
    with pytest.raises(DataError, match="b.yaml: task 'tiny_choice' is already defined in .*a.yaml"):
        choose(["tiny_choice"], [tmp_path])
    with pytest.raises(ConfigError, match="is asked for twice"):
        load(choose(["tiny_choice", "tiny_tag"], [TASKS]))


def test_digests_follow_documents_and_prompts(tmp_path):
    tasks, _ = load(choose(["tiny_choice", "tiny_half"], [TASKS]))
    check_documents(tasks)
    whole, half = tasks["tiny_choice"], tasks["tiny_half"]
    assert task_digest(whole, whole.eval_docs) == task_digest(whole, list(whole.eval_docs)) != task_digest(half, half.eval_docs)
    assert task_digest(whole, list(whole.eval_docs)[:9]) != task_digest(whole, whole.eval_docs)


def test_the_harness_finds_the_model_itself(folder, monkeypatch):
    """``--model ttt`` and ``--model unitlm`` in its own registry, arguments as strings."""
    from lm_eval.api.registry import get_model

    from ttt.textbench.harness import load_scorer
    from ttt.textbench.harness_model import register, request

    register(load_scorer)
    for name in ("ttt", "unitlm"):
        made = get_model(name).create_from_arg_string(
            f"pretrained={folder},text_vocab_only=False,max_length=64", {"batch_size": "4", "device": "cuda:0"}
        )
        assert made.scorer.settings.vocabulary == "full" and made.max_length == 64 and made.scorer.settings.batch_size == 4
        ((logprob, greedy),) = made.loglikelihood([request("loglikelihood", "a cat", " sat")])
        pair = encode_pair(tiny_tokenizer(), "a cat", " sat", 64)
        assert logprob == pytest.approx(made.scorer.score([pair])[0].logprob, abs=1e-5) and not greedy
    with pytest.raises(ConfigError, match="no argument 'pretraind'. Did you mean 'pretrained'"):
        get_model("ttt")(pretraind=str(folder))


@pytest.mark.parametrize("n, most", [(5, 3), (12, 4), (3, 9)])
def test_windows_are_the_harnesses(n, most):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    ids = list(range(1, n + 1))
    theirs = [make_disjoint_window(w) for w in get_rolling_token_windows(ids, 0, most, 1)]
    assert [(list(p.context), list(p.target)) for p in windows(ids, 0, most)] == theirs


@pytest.mark.parametrize("written", ["B", " b.", "Because of B, not A", "ABC", "none", "The answer is (D)"])
def test_generative_mmlu_redux_parses_as_the_harness(written):
    """Our parser against the harness's own filter and metric."""
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters.extraction import RegexFilter

    from ttt.textbench.mmlu_redux import LETTERS, parse

    for how, pattern in (("letter", r"\b([ABCD])\b"), ("any", "([ABCD])"), ("whole", None)):
        text = written if pattern is None else RegexFilter(pattern).apply([[written]], [{}])[0][0]
        for number, letter in enumerate(LETTERS):
            theirs = exact_match_fn(predictions=[text.strip()], references=[letter], ignore_case=True, ignore_punctuation=True)
            assert (parse(written, how) == number) == bool(theirs["exact_match"])


def test_a_plain_model_gets_the_numbers_of_the_harness_s_own(tmp_path):
    """The harness's Hugging Face model and ours on one folder: log-likelihoods, greediness, whole texts, answers."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.unit.cli.test_tokenizer_verb import plain_bpe
    from ttt.textbench.harness import load_scorer
    from ttt.textbench.harness_model import HarnessModel, request

    plain = plain_bpe([d["question"] for d in documents("choices.jsonl")])
    plain.add_special_tokens(["<|endoftext|>"])
    config = AutoConfig.for_model(
        "qwen2", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=plain.get_vocab_size(), tie_word_embeddings=False, initializer_range=0.2,
        max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    plain.save(str(tmp_path / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "clean_up_tokenization_spaces": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    theirs = HFLM(pretrained=str(tmp_path), device="cpu", dtype="float32", max_length=40, batch_size=4)
    ours = HarnessModel(load_scorer(pretrained=str(tmp_path), max_length=40, device="cpu"))
    asked = [(f"Q: {d['question']}\nA: ", o) for d in documents("choices.jsonl")[:4] for o in d["options"]]
    asked += [("", "a cat"), ("one two " * 30, "three")]  # a beginning; a context that is cut
    requests = [request("loglikelihood", *a) for a in asked]
    a, b = theirs.loglikelihood(requests, disable_tqdm=True), ours.loglikelihood(requests)
    assert np.allclose([x[0] for x in a], [x[0] for x in b], atol=1e-3) and [x[1] for x in a] == [x[1] for x in b]
    whole = [request("loglikelihood_rolling", " ".join(d["question"] for d in documents("choices.jsonl")[:n])) for n in (1, 9)]
    assert np.allclose(theirs.loglikelihood_rolling(whole, disable_tqdm=True), ours.loglikelihood_rolling(whole), atol=1e-2)
    how = {"until": ["zz"], "max_gen_toks": 8, "do_sample": False}
    prompts = [request("generate_until", context, dict(how)) for context, _ in asked[:6:2]]
    assert theirs.generate_until(prompts, disable_tqdm=True) == ours.generate_until(prompts)
