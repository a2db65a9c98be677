"""`ttt.load` on a tiny run: questions of every kind, streams, traces, and what the documentation shows."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ttt
from tests.conftest import audio, chat, text, tiny_hf, tiny_tokenizer
from ttt.audio.codecs.toy import Toy
from ttt.config.load import load_config, resolved_yaml
from ttt.errors import ConfigError, DataError, TttError
from ttt.model.lm import SpeechTextLM
from ttt.types import AudioCodes, Example, Span, Turn, Waveform

ROOT = Path(__file__).resolve().parents[2]
V = tiny_tokenizer().vocab


def write_run(folder, *settings):
    """A run folder with an untrained model."""
    made = [
        f"run.dir={folder}", "run.device=cpu", "codec=toy", "eval.max_tokens=40",
        "eval.sampler={name: blockwise, block_length: 5, gen_length: 20, diffusion_steps: 12}", *settings,
    ]  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(resolved_yaml(load_config([], made)))
    SpeechTextLM(tiny_hf(), tiny_tokenizer()).save(folder / "model")
    return folder


def make_talkative(monkeypatch):
    """Random models open spans, close them and end."""
    likes = {V.soa_id: 5.0, V.soa_last_id: 3.5, V.im_end_id: -1.0, V.eoa_id: 1.5, V.eoa_last_id: 1.5}
    bias = torch.zeros(V.size)
    bias[list(likes)] = torch.tensor(list(likes.values()))
    head = SpeechTextLM.head

    def biased(self, hidden, *ids):
        return head(self, hidden, *ids) + bias[ids[0] if ids and ids[0] is not None else slice(None)]

    monkeypatch.setattr(SpeechTextLM, "head", biased)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("api") / "run")


@pytest.fixture
def talkative(monkeypatch):
    make_talkative(monkeypatch)


def tone(seconds=0.4, rate_hz=16_000):
    ids = np.arange(round(seconds * 50), dtype=np.int32)[:, None] % 32
    return Waveform(Toy(rate_hz=rate_hz).decode([AudioCodes(ids, 50.0, "toy")])[0].samples, rate_hz)


def test_a_stream_is_the_answer(run, talkative):
    model = ttt.load(run, "eval.temperature=1.0")
    assert model.tokenizer.vocab == V and set(model.tasks) == {"asr", "tts", "qa"}
    answer = model.generate("a cat sat", task="qa", uid="q")
    assert len(answer.generation.codes) and answer.sound is not None and answer.trace is None
    events = list(model.stream("a cat sat", task="qa", uid="q", chunk_frames=(2, 4)))
    assert events[-1].kind == "end" and events[-1].generation.ids == answer.generation.ids
    sound = np.concatenate([e.samples for e in events if e.kind == "sound"])
    np.testing.assert_array_equal(sound, answer.sound.samples)
    assert events[-1].generation.text == answer.text
    assert {e.kind for e in model.stream("a cat sat", uid="q", sound=False)} <= {"text", "block", "end"}


def test_batches_and_names(run, talkative):
    model = ttt.load(run, "eval.temperature=1.0", "eval.batch_size=2")
    questions = ["one", "two three", "four"]
    together = model.generate_batch(questions, task="tts", uids=["a", "b", "c"], trace=True)
    alone = [model.generate(q, task="tts", uid=u) for q, u in zip(questions, "abc")]
    assert [a.generation.ids for a in together] == [a.generation.ids for a in alone]
    assert [a.trace.uid for a in together] == ["a", "b", "c"]
    assert all(tuple(a.trace.ids) == a.generation.ids for a in together)
    assert model.generate_batch([]) == []
    drawn = [model.generate("one").generation.ids for _ in range(4)]
    assert len(set(drawn)) > 1, "questions without a name are different questions"


def test_audio_may_be_spelled_in_a_prompt(run):
    model = ttt.load(run)
    spelled = "say it<|begin_of_audio|><|audio_3|><|audio_9|><|end_of_audio|>"
    system, user = (Turn("system", (Span("text", "be kind"),)),
                    Turn("user", (Span("text", "say it"), Span("audio", codes=np.array([[3], [9]]), style="user"))))  # fmt: skip
    assert model.prompt(spelled, system="be kind").ids == model.prompt([system, user]).ids
    whole = f"<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n{spelled}<|im_end|>\n<|im_start|>assistant\n"
    assert model.prompt(whole).ids == model.prompt([system, user]).ids
    assert model.generate(spelled, uid="q").generation.ids
    with pytest.raises(DataError, match="the question: span opened by '<|begin_of_audio|>' has no end token".replace("|", r"\|")):
        model.prompt("<|begin_of_audio|><|audio_3|>")


def test_streams_do_not_disturb_each_other(run, talkative):
    model = ttt.load(run, "eval.temperature=1.0")

    def listen(uid, meanwhile=lambda: None):
        out = []
        for e in model.stream("a cat", uid=uid, chunk_frames=(2,)):
            meanwhile()
            out.append((e.kind, e.calls, e.text, None if e.generation is None else e.generation.ids))
        return out

    alone = [listen("a"), listen("b")]
    other = model.stream("a cat", uid="b", chunk_frames=(2,))
    taken = []

    def meanwhile():
        taken.extend(
            (e.kind, e.calls, e.text, None if e.generation is None else e.generation.ids) for e in [*next_of(other)]
        )
        if len(taken) in (2, 6):
            model.generate("x", uid="c")

    assert listen("a", meanwhile) == alone[0] and taken == alone[1][: len(taken)] and len(taken) > 3


def next_of(events):
    event = next(events, None)
    return [] if event is None else [event]


def test_questions_of_every_kind_are_the_same_prompt(run, tmp_path):
    """Text, turns and examples; a wave, its file, and its codes."""
    from ttt.audio.wav import write

    model = ttt.load(run)
    turns = [Turn("system", (Span("text", "answer the question"),)), Turn("user", (text("a cat"),))]
    example = Example("q", (*turns, Turn("assistant", (text("no"),))), "qa")
    ids = [model.prompt(q, task=t).ids for q, t in (("a cat", "qa"), (turns, ""), (turns[1:], "qa"), (example, ""))]
    assert ids[0] == ids[1] == ids[2] == ids[3]
    assert model.prompt("a cat", system="answer the question").ids == ids[0] != model.prompt("a cat").ids
    assert model.prompt(Example("x", tuple(turns), "unknown")).ids == ids[0]
    assert model.prompt(Example("x", (*turns, Turn("assistant", (text("no"),))), "unknown")).ids == ids[0]

    wave = tone()
    write(tmp_path / "q.wav", wave)
    (codes,) = Toy().encode([wave])
    spoken = [wave, tmp_path / "q.wav", [Turn("user", (Span("audio", codes=codes.ids, style="user"),))]]
    heard = [model.prompt(q, task="asr").ids for q in spoken]
    assert heard[0] == heard[1] == heard[2]
    assert sum(V.code_start <= i < V.code_stop for i in heard[0]) == 20
    other = model.prompt(tone(rate_hz=32_000), task="asr").ids
    assert sum(V.code_start <= i < V.code_stop for i in other) == 20, "another rate is resampled"


def test_an_answer_without_sound(run, tmp_path, monkeypatch):
    model = ttt.load(run, "eval.max_tokens=3")
    answer = model.generate("a cat")
    if len(answer.generation.codes):
        pytest.fail("this model was not to speak")
    assert answer.sound is None
    with pytest.raises(DataError, match="has no sound to write"):
        answer.save(tmp_path / "x.wav")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_asked(run):
    model, deaf = ttt.load(run), ttt.load(run, sound=False)
    assert deaf.codec is None
    example = chat("e", [audio([1], "user")], [text("x")])
    for call, message in (
        (lambda: model.generate("x", task="aq"), r"task 'aq': the run has none of this name. Did you mean 'qa'\?"),
        (lambda: model.generate([]), "a conversation to answer ends with a turn of the user's"),
        (lambda: model.generate([Turn("assistant", (text("x"),))]), "ends with a turn of the user's"),
        (lambda: model.generate(example, task="qa"), "example 'e' has its own task and system message"),
        (lambda: model.generate([Turn("system", ()), Turn("user", (text("x"),))], task="qa"), "has its own system message"),
        (lambda: model.generate("<|im_end|>"), "contains the special token"),
        (lambda: model.generate(Path("nowhere.wav")), "nowhere.wav: no such wav file"),
        (lambda: deaf.generate(tone()), "a spoken question needs a codec to encode it; configure codec="),
        (lambda: deaf.stream("x"), r"there is no codec to make sound with; configure codec=, or stream\(..., sound=False\)"),
        (lambda: model.stream("x", chunk_frames=(0,)), "chunk sizes: expected"),
    ):  # fmt: skip
        with pytest.raises(TttError, match=message):
            call()


def test_what_cannot_be_loaded(run, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder; name a run"):
        ttt.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty: no config.yaml here or above"):
        ttt.load(tmp_path / "empty")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(DataError, match="unfinished: no complete checkpoint here"):
        ttt.load(tmp_path / "unfinished")
    with pytest.raises(ConfigError, match=r"has 1 codebook\(s\) of 16 codes, the model's vocabulary 1 of 32"):
        ttt.load(run, "codec={name: toy, num_codes: 16}")
    with pytest.raises(ConfigError, match="eval.max_tokns: no such key"):
        ttt.load(run, "eval.max_tokns=3")


def test_a_model_folder_needs_a_recipe(run, tmp_path):
    import shutil

    shutil.copytree(run / "model", tmp_path / "alone")
    loaded = ttt.load(tmp_path / "alone", config=run / "config.yaml")
    assert loaded.prompt("x").ids == ttt.load(run).prompt("x").ids
    assert ttt.load(run / "model").config == ttt.load(run).config, "inside a run its config.yaml is found"


def test_import_is_cheap_and_names_are_known():
    code = (
        "import sys, ttt; print({'torch', 'transformers', 'omegaconf'} & set(sys.modules), "
        "set(dir(ttt)) >= {'Answer', 'Model', 'load'}, ttt.load)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("set() True <function load"), done.stderr
    with pytest.raises(AttributeError, match="module 'ttt' has no attribute 'laod'"):
        ttt.laod


def test_the_documented_code_runs(run, talkative, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/streaming.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) == 2 and all('"exp/ttt"' in b for b in blocks)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        block = block.replace('"exp/ttt"', repr(str(run)))
        block = block.replace("name: threshold,", "name: threshold, block_length: 5, gen_length: 20,")
        exec(compile(block, "docs/streaming.md", "exec"), {})
    said = capsys.readouterr().out
    assert "network calls" in said and (" s]" in said) == (tmp_path / "answer.wav").exists()


def test_an_answer_with_holes_is_filled(run):
    model = ttt.load(run, "eval.sampler={name: fixed_length, canvas: answer, gen_length: 4}", "objective=nar")
    answer = model.generate("a cat", answer="on the[MASK:2] mat", uid="q")
    assert answer.text.startswith("on the") and answer.text.endswith(" mat") and len(answer.generation.ids) > 4
    with pytest.raises(DataError, match="has no hole"):
        model.generate("a cat", answer="on the mat")
