"""Text before the acoustic prompt: training and decoding read the same, rows do not disturb each other; the task of VALL-E."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.unit.valle.small_valle import BOOKS, CODES, example, network, recording, tokenizer
from ttt.audio.wav import write
from ttt.config.load import build_config
from ttt.data.batches.codec_frames import frames_of, resplit
from ttt.data.batches.rows import collate
from ttt.data.convert.corpus import write_corpus
from ttt.data.encode import encode_example
from ttt.errors import ConfigError, DataError
from ttt.model.arch import check_tasks
from ttt.model.valle.network import FrameInputs
from ttt.registry.families import CONVERTER, MASK, SAMPLER, TASK
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.types import Example, LogitsRequest, Prompt, Waveform

PREFIX = MASK.build("prefix", "mask")
V = tokenizer().vocab
TEXTS = ("a cat", "sat on", "the mat and slept")
SHAPES = [{}, {"positions": "rotary", "prepend_bos": False}, {"continuous_positions": True, "prenet": True, "share_tables": True}]


def examples(texts=TEXTS):
    rng = np.random.default_rng(0)
    return [
        example(f"e{i}", recording(rng, s), recording(rng, t), words)
        for i, ((s, t), words) in enumerate(zip(((5, 7), (4, 3), (6, 9)), texts, strict=True))
    ]


def frames(some):
    streams = [encode_example(e, tokenizer()) for e in some]
    return frames_of(collate([[s] for s in streams], max(map(len, streams)), V.pad_id, V.mask_id, V.code_space))


def scores(net, some):
    f = frames(some)
    return net(FrameInputs(f.prompt, f.prompt_lens, f.target, f.target_lens, PREFIX, stages=(1, 2), words=f.words))


def prompts(some):
    streams = [encode_example(Example(e.uid, e.turns[:1], e.task), tokenizer(), open_answer=True) for e in some]
    return [Prompt.of(s, e.uid) for s, e in zip(streams, some, strict=True)]


def test_the_words_are_those_of_the_prompt():
    f = frames(examples())
    for d, text in enumerate(TEXTS):
        said = tokenizer().decode(f.words.ids[d, : f.words.lens[d]].tolist())
        assert text in said and said.endswith("assistant\n"), said
    assert resplit(f, torch.tensor([2, 2, 2])).words is f.words


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_read_their_own_text(shape):
    """In a batch of texts and prompts of different lengths, every row scores as alone; another text changes its row only."""
    net = network(text=True, **shape)
    together, other = scores(net, examples()), scores(net, examples(("a cat", "was on", "the mat and slept")))
    for name in ("ar", "nar"):
        for d, e in enumerate(examples()):
            mine = together[name].nll[together[name].row == d]
            torch.testing.assert_close(mine, scores(net, [e])[name].nll, atol=1e-5, rtol=1e-5)
            moved = float((mine - other[name].nll[other[name].row == d]).abs().max())
            assert moved > 1e-3 if d == 1 else moved < 1e-5, (name, d)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_reads_what_training_read(shape):
    net, some = network(text=True, **shape), examples()
    sessions = [net.session(PREFIX, cache=c, slots=3) for c in ("exact", "none")]
    trained = scores(net, some)["ar"]
    for n, p in enumerate(prompts(some)):
        for session in sessions:
            session.admit(n, p)
    for t in range(3):
        requests = []
        for n, e in enumerate(some):
            flat = torch.from_numpy(e.turns[1].spans[0].codes[:t]).long() + V.code_start + torch.arange(BOOKS) * CODES
            tail = torch.cat([flat.flatten(), torch.tensor([V.mask_id])])
            requests.append(LogitsRequest(torch.tensor([n]), tail[None], torch.tensor([[t * BOOKS]]), 1))
        cached, slow = ([x[0, 0] for x in session.run(requests)] for session in sessions)
        for n, e in enumerate(some):
            torch.testing.assert_close(cached[n], slow[n], atol=1e-5, rtol=0)
            nll = trained.nll[trained.row == n]
            if not net.arch.prepend_bos:
                nll = nll.roll(1)  # the first code's stands last
            code = V.code_start + int(e.turns[1].spans[0].codes[t, 0])
            torch.testing.assert_close(-cached[n].log_softmax(-1)[code], nll[t], atol=1e-5, rtol=0)


def test_answers_depend_on_the_text_and_not_on_company():
    sampler = SAMPLER.build({"name": "valle", "temperature": 0.0, "min_frames": 6, "max_frames": 6}, "eval.sampler")

    def answers(net, some):
        return [g.codes.tolist() for g in Decoder(net, PREFIX, sampler, DecodeSettings(max_tokens=200)).generate(prompts(some))]

    reads, deaf = network(text=True), network()
    together = answers(reads, examples())
    assert together == [answers(reads, [e])[0] for e in examples()]
    changed = answers(reads, examples(("x", "y", "z")))
    assert changed != together and answers(deaf, examples()) == answers(deaf, examples(("x", "y", "z")))


def test_the_task_cuts_or_takes_another_recording():
    codes = {uid: np.full((n, 2), k, dtype=np.int32) for k, (uid, n) in enumerate((("u1", 10), ("u2", 6)))}
    item = {"id": "i", "task": "zero_shot_tts", "output": "u1", "text_out": "hello there", "voice": "u2", "voice_text": "so be it"}

    def built(of=item, **fields):
        task = TASK.build({"name": "zero_shot_tts", "cut": {"least": 2}, **fields}, "t")
        e = task.build(of, codes)
        words, heard = e.turns[0].spans
        return words.text, heard.codes.shape[0], e.turns[1].spans[0].codes.shape[0], e.meta["speech_ref"]

    assert built() == ("hello there", 4, 6, None)
    assert built(voice="other") == ("so be it hello there", 6, 10, "hello there")
    assert built({**item, "phonemes": "HH AH0 L OW1"}, text="phonemes")[0] == "HH AH0 L OW1"
    with pytest.raises(DataError, match=r"item 'i': names no other recording of its speaker \('voice'\)"):
        built({k: v for k, v in item.items() if k != "voice"}, voice="other")
    with pytest.raises(DataError, match="reads 'text_out', which is empty"):
        built({**item, "text_out": " "})
    with pytest.raises(ConfigError, match="model.arch.text: false, and task 'zero_shot_tts' speaks a text"):
        check_tasks(network().arch, None, build_config({"tasks": [{"name": "zero_shot_tts"}]}).tasks)
    reads = dataclasses.replace(network().arch, text=True)
    check_tasks(reads, None, build_config({"tasks": [{"name": "zero_shot_tts"}]}).tasks)
    other = build_config({
        "tasks": [{"name": "zero_shot_tts", "voice": "other"}], "objective": {"name": "valle", "cut": {"mode": "fixed"}},
    })  # fmt: skip
    with pytest.raises(ConfigError, match=r"objective.cut.mode: 'fixed' cuts prompt and answer anew.* objective.cut.mode=stored"):
        check_tasks(reads, other.objective, other.tasks)


def test_a_stretch_of_another_recording_comes_without_its_words():
    """VALL-E's prefix mode 4."""
    codes = {"u1": np.zeros((10, 2), dtype=np.int32), "u2": np.arange(40, dtype=np.int32).repeat(2).reshape(40, 2)}
    item = {"task": "zero_shot_tts", "output": "u1", "text_out": "hello there", "voice": "u2", "voice_text": "so be it"}
    task = TASK.build({"name": "zero_shot_tts", "voice": "other", "voice_s": 0.5}, "t")
    with pytest.raises(ConfigError, match="voice_s needs the frames of a second"):
        task.build({**item, "id": "i"}, codes)
    starts = set()
    for n in range(20):
        made, again = (task.at_rate(10.0).build({**item, "id": f"i{n}"}, codes) for _ in range(2))
        words, heard = made.turns[0].spans
        first = int(heard.codes[0, 0])
        assert words.text == "hello there" and heard.codes[:, 1].tolist() == list(range(first, first + 5))
        assert np.array_equal(again.turns[0].spans[1].codes, heard.codes) and len(made.turns[1].spans[0].codes) == 10
        starts.add(first)
    assert len(starts) > 5
    task = TASK.build({"name": "zero_shot_tts", "voice": "other", "voice_s": 9}, "t").at_rate(10.0)
    longer = task.build({**item, "id": "i"}, codes)
    assert len(longer.turns[0].spans[1].codes) == 40


def test_items_name_another_recording_of_the_speaker(tmp_path):
    sound = Waveform(np.zeros(16000, dtype=np.float32), 16000)
    for name in ("a1", "a2", "a3"):
        write(tmp_path / "in/a" / f"{name}.wav", sound)
        (tmp_path / "in/a" / f"{name}.txt").write_text(f"words of {name}")
    write(tmp_path / "in/b/b1.wav", sound)
    (tmp_path / "in/b/b1.txt").write_text("words of b1")
    tasks = ["zero_shot_tts", "tts"]
    converter = CONVERTER.build({"name": "folder", "speaker_level": 1}, "c")
    write_corpus(converter, tmp_path / "in", tmp_path / "out", "train", tasks, reads_voice={"zero_shot_tts"})
    items = [json.loads(line) for line in (tmp_path / "out/train.items.jsonl").read_text().splitlines()]
    voices = {i["output"]: (i.get("voice"), i.get("voice_text")) for i in items if i["task"] == "zero_shot_tts"}
    assert voices == {
        "a/a1": ("a/a2", "words of a2"), "a/a2": ("a/a1", "words of a1"), "a/a3": ("a/a2", "words of a2"), "b/b1": (None, None),
    }  # fmt: skip
    assert not any("voice" in i for i in items if i["task"] == "tts")
