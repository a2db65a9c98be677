"""Generative perplexity against transformers' own loss, in the evaluator, and its refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from ttt.check.core import check
from ttt.errors import CheckpointError, ConfigError
from ttt.eval.evaluate import evaluate
from ttt.eval.inputs import check_words
from ttt.eval.listen import Instruments
from ttt.eval.normalizers import Words
from ttt.eval.score import Bootstrap
from ttt.registry.families import METRIC, TASK


def loss(folder, text: str) -> tuple[float, int]:
    """Sum of -log p of all tokens but the first, by the model's own loss."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        mean = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids, labels=ids).loss
    return float(mean) * (ids.shape[1] - 1), ids.shape[1] - 1


def build(folder, **fields):
    return METRIC.build({"name": "gen_ppl", "path": str(folder), **fields}, "metric")


def test_agrees_with_the_loss_of_transformers(language_model):
    metric = build(language_model)
    texts = ["the sky is blue", "one two", "", "what is that"]  # with <s>: 5, 3, 1 and 4 tokens
    rows = [metric.item({"judged_text": text, "text": "unused"}) for text in texts]
    expected = [loss(language_model, text) if text else (0.0, 0) for text in texts]
    np.testing.assert_allclose(rows, expected, rtol=1e-5)
    total, tokens = np.sum(expected, axis=0)
    assert tokens == 9 and metric.total(np.sum(rows, axis=0)) == pytest.approx(np.exp(total / tokens), rel=1e-5)
    assert metric.item({"judged_text": None, "text": "one"}) is None
    of_text = build(language_model, of="text")
    assert of_text.item({"judged_text": None, "text": "one two"}).tolist() == rows[1].tolist() and not of_text.needs_audio


def test_longer_than_the_context_of_the_model(language_model):
    """Six positions: <s> and five words; then the last of these and the rest."""
    nll, tokens = build(language_model).item({"judged_text": "one two three four five six seven"})
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(language_model)("one two three four five six seven", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(language_model)
        parts = [float(model(input_ids=part, labels=part).loss) * (part.shape[1] - 1) for part in (ids[:, :6], ids[:, 5:])]
    assert tokens == 7 and nll == pytest.approx(sum(parts), rel=1e-5)


def test_keeps_the_promises_of_metrics(language_model):
    results = {r.name: r.outcome for r in check("metric", build(language_model))}
    assert results == {"statistics": "ok", "micro": "ok", "direction": "-", "deterministic": "ok"}


def test_in_the_evaluator(fakes, language_model, tmp_path):
    """Speech by what the judge hears, text by itself, each named after the model; true answers as the floor."""
    examples = [fakes.example(f"qa-{i}", "qa", "one two three") for i in range(3)]
    records = [fakes.answer(e, "five six", said) for e, said in zip(examples, ("one one one one", "two three", ""), strict=True)]
    node = {"name": "gen_ppl", "path": str(language_model)}
    metrics = {"qa": {"gen_ppl": node, "text_ppl": {**node, "of": "text"}, "token_entropy": "token_entropy"}}
    instruments = Instruments(fakes.judge, fakes.codec, Words())
    result = evaluate(records, examples, metrics, instruments, tmp_path, samples=0, floor=True, intervals=Bootstrap(50)).result
    found = {k.removeprefix("qa/"): m for k, m in result["metrics"].items()}

    def perplexity(*texts):
        total, tokens = np.sum([loss(language_model, text) for text in texts], axis=0)
        return pytest.approx(np.exp(total / tokens), rel=1e-5)

    assert found["gen_ppl"]["value"] == perplexity("one one one one", "two three") and found["gen_ppl"]["n"] == 3
    assert found["gen_ppl"]["low"] < found["gen_ppl"]["value"] < found["gen_ppl"]["high"]
    assert found["text_ppl"]["value"] == perplexity("five six")
    assert found["floor_gen_ppl"]["value"] == perplexity("one two three") and "floor_text_ppl" not in found
    assert found["token_entropy"]["value"] == pytest.approx((0 + 1 + 0) / 3)
    model_id = build(language_model).model_id
    assert model_id.startswith("llama-") and found["gen_ppl"]["metric_id"] == f"gen_ppl[fake-1a2b,{model_id}]"
    assert found["text_ppl"]["metric_id"] == f"gen_ppl[text,{model_id}]"
    assert "codes" not in json.loads((tmp_path / "items.jsonl").read_text().splitlines()[0])


def test_refused_before_anything_is_heard(fakes, language_model, tmp_path):
    example = fakes.example("qa-1", "qa", "one")
    instruments = Instruments(fakes.judge, fakes.codec, Words())

    def refused(folder) -> str:
        metrics = {"qa": {"gen_ppl": {"name": "gen_ppl", "path": str(folder)}}}
        with pytest.raises(CheckpointError) as error:
            evaluate([fakes.answer(example, "one", "one")], [example], metrics, instruments, tmp_path / "out")
        assert fakes.judge.heard == 0 and not (tmp_path / "out").exists() and "\n" not in str(error.value)
        return str(error.value)

    assert refused("").startswith("metric 'gen_ppl': path is not set: point the metric's path at")
    assert "config.json is missing" in refused(tmp_path)
    bare = tmp_path / "bare"
    shutil.copytree(language_model, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    assert "the tokenizer cannot be loaded" in refused(bare)


def test_tasks_take_it_as_a_block(language_model):
    """And it needs no words to compare with."""
    node = {"name": "gen_ppl", "path": str(language_model)}
    for name in ("continuation", "chat", "document"):
        task = TASK.build({"name": name, "measure": [node, "token_entropy"]}, "tasks[0]")
        assert task.metrics["gen_ppl"] == node and task.metrics["token_entropy"] == "token_entropy"
    free = TASK.build({"name": "continuation", "measure": [node, "auto_bleu"]}, "tasks[0]")
    from ttt.types import Example, Span, Turn

    codes = np.zeros((2, 1), dtype=np.int32)
    turns = (Turn("user", (Span("audio", codes=codes),)), Turn("assistant", (Span("audio", codes=codes),)))
    check_words({language_model: [Example("e", turns, "continuation")]}, {"continuation": free})
    with pytest.raises(ConfigError, match="measure: a metric is a name or a block with 'name'"):
        _ = TASK.build({"name": "chat", "measure": [{"path": "x"}]}, "tasks[0]").metrics
