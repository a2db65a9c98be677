"""Text benchmarks of a text-then-speech model: fifty questions by hand, with plain transformers and numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ttt.masks.library import Causal
from ttt.model.lm import SpeechTextLM
from ttt.objective.library import Ar
from ttt.text.tokenizer import train_bpe
from ttt.textbench.scorer import ScorerSettings, TextScorer
from ttt.textbench.texts import chat_text, encode

PLAIN, TAGGED = "text_then_speech", "text_then_speech_tags"

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "sang", "one", "two", "three", "songs", "for", "all", "of", "us")


def made_model(form: str, seed: int = 0) -> SpeechTextLM:
    """A random network whose likeliest id is nearly always one of speech."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = train_bpe([" ".join(WORDS), "user assistant system"] * 3, 290, 40, form=form)
    config = AutoConfig.for_model(
        "qwen3", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=tokenizer.vocab.size + 3, tie_word_embeddings=False, initializer_range=0.3, use_cache=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        with torch.no_grad():
            hf.lm_head.weight[tokenizer.vocab.code_start :] *= 3
    return SpeechTextLM(hf, tokenizer)


def questions(seed: int = 1) -> list[dict]:
    rng = np.random.default_rng(seed)

    def words(n: int) -> str:
        return " ".join(rng.choice(WORDS, size=n))

    return [
        {"question": words(int(rng.integers(2, 7))), "options": [words(int(rng.integers(1, 4))) + f" {i}" for i in range(4)],
         "gold": int(rng.integers(4))}
        for _ in range(50)
    ]  # fmt: skip


def by_hand(model: SpeechTextLM, context: str, continuation: str) -> tuple[float, float]:
    """(log p of the continuation with all probability on text, mean probability of everything else)."""
    t = model.tokenizer
    before, target = encode(t, context), encode(t, context + continuation)[len(encode(t, context)) :]
    with torch.no_grad():
        logits = model.hf(torch.tensor([before + target])).logits[0].double().numpy()
    rows = logits[len(before) - 1 : -1]
    peak = rows.max(1, keepdims=True)
    whole = np.log(np.exp(rows - peak).sum(1)) + peak[:, 0]
    text = rows[:, : t.vocab.text_vocab]
    inside = np.log(np.exp(text - peak).sum(1)) + peak[:, 0]
    logp = float((rows[np.arange(len(target)), target] - inside).sum())
    return logp, float((1 - np.exp(inside - whole)).mean())


@pytest.mark.parametrize("form", (PLAIN, TAGGED))
def test_fifty_questions_equal_a_computation_by_hand(form):
    model = made_model(form)
    scorer = TextScorer(model, Ar(mask=Causal()), None, ScorerSettings(template="qwen3"))
    asked, mine, masses = questions(), [], []
    contexts = [scorer.chat([{"role": "user", "content": q["question"]}]) for q in asked]
    pairs = [(c, o) for c, q in zip(contexts, asked, strict=True) for o in q["options"]]
    found = scorer.loglikelihood(pairs)
    for context, option in pairs:
        logp, mass = by_hand(model, context, option)
        mine.append(logp)
        masses.append(mass)
    assert np.allclose([f.logprob for f in found], mine, atol=1e-4)
    gold = np.array([q["gold"] for q in asked])
    accuracy = [(np.reshape(s, (50, 4)).argmax(1) == gold).mean() for s in ([f.logprob for f in found], mine)]
    assert accuracy[0] == accuracy[1] and 0 < accuracy[0] < 1
    assert np.mean(masses) > 0.5, "speech would win nearly everywhere"
    told = scorer.speech_mass()
    assert told.sum(0)[0] / told.sum(0)[1] == pytest.approx(
        np.average(masses, weights=[f.tokens for f in found]), abs=1e-5
    )


def test_the_tags_are_no_text_and_probabilities_sum_to_one_without_them():
    model = made_model(TAGGED)
    scorer = TextScorer(model, Ar(mask=Causal()), None, ScorerSettings())
    v = model.tokenizer.vocab
    assert int(scorer.allowed.sum()) == v.text_vocab and not scorer.allowed[list(v.modality_tokens.values())].any()
    context = chat_text(model.tokenizer, [{"role": "user", "content": "sing"}], "qwen3")
    assert context.startswith("<|im_start|>user\n") and context.endswith("<think>\n\n</think>\n\n")


def test_the_harness_gives_the_same_numbers(tmp_path):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    from ttt.cli.main import main
    from ttt.eval.cards import read_card

    model, asked = made_model(TAGGED), questions()
    model.save(tmp_path / "model")
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(q) + "\n" for q in asked))
    (tmp_path / "quiz.yaml").write_text(
        "task: quiz\ndataset_path: json\ndataset_kwargs: {data_files: {test: quiz.jsonl}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{options}}"\ndoc_to_target: gold\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    assert main([
        "eval", "lm-eval", "--model", str(tmp_path / "model"), "--tasks", str(tmp_path / "quiz.yaml"), "--chat", "--template",
        "qwen3", "--out", str(tmp_path / "out"), "objective=ar",
    ]) == 0  # fmt: skip
    scorer = TextScorer(model, Ar(mask=Causal()), None, ScorerSettings(template="qwen3"))
    right = []
    for q in asked:
        context = scorer.chat([{"role": "user", "content": q["question"]}])
        right.append(int(np.argmax([by_hand(model, context, o)[0] for o in q["options"]])) == q["gold"])
    assert read_card(tmp_path / "out/card.json")["metrics"]["quiz/acc"]["value"] == np.mean(right)
