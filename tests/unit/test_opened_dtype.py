"""``model.dtype``: every verb that opens a trained model opens it in that type; choices are made in float32."""

import json

import numpy as np
import pytest
import torch

import ttt
from tests.tiny_runs import make_run
from tests.unit.valle.small_valle import example, network, recording, tokenizer
from ttt.cli.main import main
from ttt.config.load import load_config
from ttt.data.encode import encode_example
from ttt.errors import ConfigError, TttError
from ttt.model import arch
from ttt.registry.families import MASK, SAMPLER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.decoder.session import Session
from ttt.train.engines import check_trainable
from ttt.types import Prompt

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
OF_RUN = ("--config", "{run}/config.yaml", "eval.examples=[{run}/examples.jsonl]")
VERBS = {
    "generate": ("generate", *OF_RUN),
    "likelihood": ("likelihood", *OF_RUN),
    "stream": ("stream", "{run}", "--text", "a cat", "--no-sound"),
    "chat": ("chat", "{run}"),
    "inspect samplers": ("inspect", "samplers", "{run}", "--examples", "{run}/examples.jsonl", "--samplers", "own"),
    "inspect attention": ("inspect", "attention", "{run}", "--examples", "{run}/examples.jsonl", "--uid", "a"),
    "eval mmlu-redux": ("eval", "mmlu-redux", "{run}/questions", "--model", "{run}"),
    "bench decode": ("bench", "decode", "--run", "{run}", "--examples", "{run}/examples.jsonl"),
}  # fmt: skip


class Opened(TttError):
    """The verb has opened its model."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("dtype") / "run", "ttt", model={"dtype": "bfloat16"})
    (folder / "questions").mkdir()
    question = {"question": "a", "choices": ["a", "b", "c", "d"], "answer": 0, "error_type": "ok"}
    (folder / "questions/anatomy.jsonl").write_text(json.dumps(question) + "\n")
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_opens_the_model_in_the_type_of_its_run(run, monkeypatch, verb, capsys):
    types, opened = [], arch.open_network

    def stop(*arguments):
        types.append(opened(*arguments).dtype)
        raise Opened("opened")

    monkeypatch.setattr(arch, "open_network", stop)
    assert main([word.format(run=run) for word in VERBS[verb]]) == 2
    assert types == [torch.bfloat16], capsys.readouterr().err


@pytest.mark.parametrize("name", TYPES)
def test_answers_are_chosen_among_logits_in_float32(run, monkeypatch, name):
    seen, asked = set(), Session.run

    def heard(self, requests):
        logits = asked(self, requests)
        seen.update(x.dtype for x in logits)
        return logits

    monkeypatch.setattr(Session, "run", heard)
    model = ttt.load(run, f"model.dtype={name}", "eval.temperature=0.7", "eval.sampler.temperature=0.7", sound=False)
    assert model.lm.dtype == TYPES[name] and model.generate("a cat", task="tts").generation.ids
    assert seen == {torch.float32}


@pytest.mark.parametrize("name", TYPES)
def test_frames_of_codes_are_written_in_each_type(name):
    model = network().to(TYPES[name])
    prompt = recording(np.random.default_rng(0), 5)
    prompts = [Prompt.of(encode_example(example(e, prompt), tokenizer(), open_answer=True), e) for e in "ab"]
    sampler = SAMPLER.build({"name": "valle", "max_frames": 3, "min_frames": 1}, "sampler")
    decoder = Decoder(model, MASK.build("prefix", "mask"), sampler, DecodeSettings(max_tokens=200))
    assert all(len(made.codes) for made in decoder.generate(prompts))


def test_weights_in_float16_are_not_trained():
    config = load_config([], ["model.dtype=float16"])
    with pytest.raises(ConfigError, match="model.dtype: weights in float16 lose small updates"):
        check_trainable(config.model.attention, "cpu", config.model.dtype)
