"""Answers during training: the same examples, scored like any others, without touching what training draws."""

import json
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import audio, chat, text, tiny_model
from ttt.errors import ConfigError
from ttt.eval.during_training import AnswersInTraining
from ttt.eval.generate import generate
from ttt.eval.listen import Instruments
from ttt.io.metrics_log import cut_back
from ttt.masks.library import Hybrid
from ttt.registry.families import NORMALIZER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.samplers.blocks import Blockwise
from ttt.tasks.speech import Asr, Tts
from ttt.types import Example

RANK0 = SimpleNamespace(engine=SimpleNamespace(rank=0))


def example(uid, task, user, answer_):
    made = chat(uid, [user], [answer_])
    return Example(uid, made.turns, task, {"text_ref": "a cat", "speech_ref": "a cat", "split": "dev"})


EXAMPLES = [
    example("a", "asr", audio([1, 2, 3], "user"), text("a cat")),
    example("b", "tts", text("a cat sat"), audio([4, 5], "last")),
    example("c", "tts", text("a"), audio([6], "last")),
]
TASKS = {"asr": Asr(speak=False), "tts": Tts()}


def callback(tmp_path, **fields):
    model = tiny_model()
    sampler = Blockwise(block_length=4, diffusion_steps=8, gen_length=8)
    decoder = Decoder(model, Hybrid(), sampler, DecodeSettings(max_tokens=12))
    made = {
        "decoder": decoder, "examples": EXAMPLES, "tasks": TASKS,
        "instruments": Instruments(None, None, NORMALIZER.build("words", "normalizer")),
        "folder": tmp_path / "generated", "samples": 0,
    }  # fmt: skip
    return AnswersInTraining(**{**made, **fields})


def no_codec(records):
    return [{**r, "codes": []} for r in records]


def test_values_by_task_and_files_by_step(tmp_path, monkeypatch):
    monkeypatch.setattr("ttt.eval.during_training.generate", lambda *a: no_codec(generate(*a)))
    call = callback(tmp_path)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    values = call(RANK0, 7)
    assert torch.equal(torch.get_rng_state(), before), "training's own draws stay what they were"
    assert "gen/asr/wer" in values and values["gen/asr/wer"] >= 0
    assert not any("judged" in key for key in values), "no judge, no judged metrics"
    items = [json.loads(line) for line in (tmp_path / "generated/step-00000007/items.jsonl").open()]
    assert [i["uid"] for i in items] == ["a", "b", "c"]
    again = call(RANK0, 8)
    assert again["gen/asr/wer"] == values["gen/asr/wer"]
    assert call(SimpleNamespace(engine=SimpleNamespace(rank=1)), 8) is None


def test_a_table_of_answers_grows_with_the_run(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def answered(*a):
        return [{**r, "codes": [], "text": f"a|b\n{r['uid']}"} for r in generate(*a)]

    monkeypatch.setattr("ttt.eval.during_training.generate", answered)
    call = callback(tmp_path, log=tmp_path / "answers.jsonl", tensorboard=tmp_path / "board")
    for step in (5, 10):
        call(RANK0, step)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").open()]
    assert [(r["step"], r["task"], r["uid"]) for r in rows[:3]] == [(5, "asr", "a"), (5, "tts", "b"), (5, "tts", "c")]
    assert {k: rows[4][k] for k in ("step", "prompt", "reference", "answer", "heard")} == {
        "step": 10, "prompt": "a cat sat", "reference": "a cat", "answer": "a|b\nb", "heard": None,
    }  # fmt: skip
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    (first, _) = board.Tensors("answers/tts/text_summary")
    table = first.tensor_proto.string_val[0].decode().splitlines()
    assert table[0] == "| uid | prompt | reference | answer | codes | heard |" and len(table) == 4
    assert table[2] == "| b | a cat sat | a cat | a\\|b b | 0 |  |"
    assert cut_back(tmp_path / "answers.jsonl", 5) == 3  # as a run does that goes on from step 5


def test_order_and_batches_change_nothing(tmp_path):
    decoder = callback(tmp_path).decoder
    one = generate(decoder, EXAMPLES, TASKS, 1)
    many = generate(decoder, EXAMPLES[::-1], TASKS, 16)[::-1]
    assert [r["uid"] for r in one] == ["a", "b", "c"]
    assert [(r["text"], r["codes"]) for r in one] == [(r["text"], r["codes"]) for r in many]


def test_nothing_to_answer(tmp_path):
    with pytest.raises(ConfigError, match="train.generate_items: there are no examples in data.dev"):
        callback(tmp_path, examples=[])
