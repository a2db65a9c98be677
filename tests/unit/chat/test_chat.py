import json

import numpy as np
import pytest
import soundfile

from tests.conftest import tiny_model
from tests.tiny_runs import SYSTEMS, make_run, talk
from ttt.audio.codecs.toy import Toy
from ttt.audio.wav import read, write
from ttt.chat.screen import Screen
from ttt.chat.session import Chat, room_of
from ttt.chat.settings import DECODING, changed
from ttt.cli.main import main
from ttt.config.load import load_config
from ttt.data.encode import encode_example
from ttt.data.read.examples import read_examples
from ttt.errors import ConfigError
from ttt.io.terminal import visible
from ttt.types import AudioCodes

SPOKEN = ["eval.sampler.temperature=3", "eval.max_tokens=16"]  # untrained answers with codes among everything else


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: make_run(folder / name, name) for name in SYSTEMS}


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_every_system_answers_as_its_decoder_does(runs, system, tmp_path, monkeypatch, capsys):
    saved = tmp_path / "talk.jsonl"
    code, out = talk(
        monkeypatch, capsys, runs[system], ["/system read this", "a cat", "", "on a mat", f"/save {saved}"]
    )
    assert code == 0 and out.count("model> ") == 2 and "saved 4 turns" in out
    (example,) = read_examples(saved)
    assert example.meta["settings"]["max_tokens"] == 14
    config = load_config([runs[system] / "config.yaml"])
    from ttt.api import decode_settings
    from ttt.model.causal_lm import load_lm
    from ttt.sampling.decoder.decoder import Decoder
    from ttt.types import Prompt

    model = load_lm(runs[system] / "model")
    decoder = Decoder(model, config.objective.mask, config.eval.sampler, decode_settings(config))
    first = type(example)("x", example.turns[:2], "chat")
    stream = encode_example(first, model.tokenizer, open_answer=True)
    (made,) = decoder.generate([Prompt.of(stream, "chat/0")])
    kept = [(s.kind, s.text) for s in example.turns[2].spans]
    assert kept == [(s.kind, s.text) for s in made.spans if s.kind == "text" or len(s.codes)]
    if made.text:
        assert visible(made.text.split()[0]) in out


def test_answers_are_written_with_their_sound(runs, tmp_path, monkeypatch, capsys):
    codes = np.array([[3], [4], [5]] * 3, dtype=np.int32)
    codec = Toy().load()
    (wave,) = codec.decode([AudioCodes(codes, codec.frame_rate_hz, codec.codec_id)])
    write(tmp_path / "my question.wav", wave)
    out = tmp_path / "out"
    lines = [
        f"/audio '{tmp_path / 'my question.wav'}' and it's words",
        "/audio gone.wav",
        f"/save {tmp_path / 's.jsonl'}",
    ]
    code, shown = talk(monkeypatch, capsys, runs["nar"], lines, "--out", str(out), *SPOKEN)
    assert code == 0 and "9 codes, 0.18 s" in shown and "chat: gone.wav: no such wav file" in shown
    user = read_examples(tmp_path / "s.jsonl")[0].turns[1]
    assert user.spans[0].codes.tolist() == codes.tolist() and user.spans[1].text == "and it's words"
    record = json.loads((out / "turn-001.json").read_text())
    assert record["codec"] == codec.codec_id and record["num_codes"] == 32
    assert len(read(out / "turn-001.wav").samples) == len(record["codes"]) * 320 > 0
    assert record["duration_s"] == pytest.approx(len(record["codes"]) / 50) and f"{len(record['codes'])} code" in shown
    assert main(["chat", str(runs["ttt"]), "--out", str(out)]) == 2
    assert "holds the answers of another chat" in capsys.readouterr().err


def test_bad_settings_say_so_and_change_nothing(runs, monkeypatch, capsys):
    lines = [
        "/show", "/set temperature hot", "/set sampler.steps 3", "/set train.lr 1", "/set temprature 1", "/set", "/set top_k",
        "/set sampler {name: blockwise, block_length: 5, gen_length: 16}", "/sett x 1", "/task cooking", "/audio",
        "/again", "/save x.txt", "/save /proc/nowhere/x.jsonl", "/save", "/undo", "/set max_tokens 0", "/show",
    ]  # fmt: skip
    code, out = talk(monkeypatch, capsys, runs["ttt"], lines)
    assert code == 0
    for says in (
        "chat: eval.temperature: must be a number, got 'hot'",
        "chat: eval.sampler.steps: no such key", "chat: train.lr: not a setting of how",
        "chat: temprature: not a setting of how answers are decoded. Did you mean 'temperature'?", "looks like /set temperature",
        "must be a multiple of block_length 5", "chat: no command /sett. Did you mean 'set'?", "chat: no task 'cooking'",
        "chat: /audio: which file?", "chat: /again: nothing was asked", "give it the ending .jsonl", "chat: /save: where to?",
        "nothing to take back", "eval.max_tokens: must be >= 1",
    ):  # fmt: skip
        assert says in out
    shows = [part.split("you>")[0] for part in out.split("you> /show\n")[1:]]
    assert len(shows) == 2 and shows[0] == shows[1] and "temperature" in shows[0]


def test_settings_that_hold(runs):
    config = load_config([runs["ttt"] / "config.yaml"])
    assert changed(config, "temperature 0.7").eval.temperature == 0.7
    assert changed(config, "eval.sampler.block_length=8").eval.sampler.block_length == 8
    assert changed(config, "seed 5").run.seed == 5
    fast = changed(config, "sampler.steps_per_block 1")
    assert fast.eval.sampler.steps_per_block == 1 and fast.eval.sampler.diffusion_steps == 4
    assert changed(config, "sampler threshold").eval.sampler.threshold == 0.9
    assert changed(config, "length {name: fixed, codes: 3}").eval.length.codes == 3
    with pytest.raises(ConfigError, match="steps_per_block: expected a number >= 1, got '0'"):
        changed(config, "sampler.steps_per_block 0")
    assert {"sampler", "temperature", "max_tokens"} <= set(DECODING) and "examples" not in DECODING


def test_a_sampler_the_objective_never_learned_is_refused(runs, monkeypatch, capsys):
    lines = ["/set sampler {name: threshold, canvas: span}", "/set sampler ar", "/set temperature 0.5"]
    code, out = talk(monkeypatch, capsys, runs["nar"], lines)
    assert (
        code == 0
        and out.count("chat: eval.sampler.canvas: objective 'nar'") == 2
        and "chat: eval.temperature: has no meaning" in out
    )


@pytest.mark.parametrize("name", ["threshold", "semi_ar_padding", "fixed_length", "first_hitting"])
def test_another_sampler_keeps_the_canvas(runs, monkeypatch, capsys, name):
    code, out = talk(monkeypatch, capsys, runs["nar"], [f"/set sampler {name}", "/set max_tokens 12", "on"])
    assert code == 0 and f"set sampler {name}" in out and "diffusion calls" in out


def test_what_ended_an_answer_is_named(runs, monkeypatch, capsys):
    """The sampler's canvas of 16 tokens, or max_tokens where that is less."""
    lines = ["/set max_tokens 256", "say a lot", "/set max_tokens 8", "on"]
    code, out = talk(monkeypatch, capsys, runs["nar"], lines, "eval.sampler.temperature=3")
    assert code == 0 and "the canvas of 16 tokens (eval.sampler.gen_length) is full" in out
    assert "cut at max_tokens = 256" not in out and "cut at max_tokens = 8" in out


class Stops:
    """The decoder of a chat whose user presses Ctrl-C after some events."""

    def __init__(self, decoder, after):
        self.decoder, self.after, self.calls = decoder, after, decoder.calls

    def events(self, prompts):
        for number, event in enumerate(self.decoder.events(prompts)):
            if number == self.after:
                raise KeyboardInterrupt  # what Python makes of the signal
            yield event


def chat_session(run, screen):
    config = load_config([run / "config.yaml"])
    return Chat(config, tiny_model().eval(), run / "model", None, screen)


@pytest.mark.parametrize("after, turns", [(0, 0), (3, 2)])
def test_ctrl_c_stops_the_answer_then_leaves(runs, capsys, after, turns):
    import sys

    session = chat_session(runs["ttt"], Screen(sys.stdout))
    session.decoder = Stops(session.decoder, after)
    lines = iter(["a cat", KeyboardInterrupt()])

    def read():
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    assert session.run(read) == 0
    out = capsys.readouterr().out
    assert len(session.talk.turns) == turns and ("stopped)" in out) == bool(turns)
    assert ("the question is taken back" in out) == (turns == 0)
    assert not session.model.training


def test_history_is_trimmed_openly_and_undone(runs, monkeypatch, capsys):
    lines = [
        "the quick brown fox",
        "the lazy dog",
        "what is the capital of france",
        "/undo",
        "/reset",
        "/show",
        "a " * 200,
        "quit",
    ]
    code, out = talk(monkeypatch, capsys, runs["ar"], lines, "--room", "90", "data.row_tokens=40")
    assert code == 0 and "turns no longer fit into 90 tokens and are left out" in out
    assert out.count("is longer than any row of the training (40)") == 1
    assert "the last question and its answer are taken back" in out and "0 turns" in out
    assert "chat: this turn takes" in out and "you> quit" in out


def test_what_a_terminal_gets(capsys):
    import sys

    class Terminal(Screen):
        def __init__(self):
            super().__init__(sys.stdout)
            self.live = True

    screen = Terminal()
    screen.write("hello")
    screen.counter("[1 code")
    screen.counter("[22 codes")
    screen.counter("[3]", final=True)
    assert capsys.readouterr().out == "hello [1 code" + "\b" * 7 + "[22 codes" + "\b" * 9 + "[3]" + " " * 6


def test_refusals_before_anything_is_loaded(runs, tmp_path, capsys):
    assert main(["chat", str(tmp_path / "nowhere")]) == 2
    assert "no such folder; name a run" in capsys.readouterr().err
    tiny_model().tokenizer.save(tmp_path / "model")
    assert main(["chat", str(tmp_path / "model")]) == 2
    assert "nothing says how this model was trained" in capsys.readouterr().err
    assert main(["chat", str(runs["ttt"]), "--play", "no-such-player -q"]) == 2
    assert "--play: no program" in capsys.readouterr().err
    assert main(["chat", str(runs["ttt"]), "codec.num_codes=16", "--out", str(tmp_path / "o")]) == 2
    assert "the model's vocabulary" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_the_player_gets_the_sound(runs, tmp_path, monkeypatch, capsys):
    heard = tmp_path / "heard"
    (tmp_path / "player").write_text(f'#!/bin/sh\nwc -c < "$1" >> {heard}\n')
    (tmp_path / "player").chmod(0o755)
    lines, options = ["a cat sat", "on a mat"], ["--play", str(tmp_path / "player"), *SPOKEN]
    code, out = talk(monkeypatch, capsys, runs["nar"], lines, *options)
    sizes = [int(n) for n in heard.read_text().split()]
    assert code == 0 and 1 <= len(sizes) <= out.count("model> ") and all(n > 44 for n in sizes)
    (tmp_path / "player").write_text("#!/bin/sh\necho no device >&2\nexit 1\n")
    code, out = talk(monkeypatch, capsys, runs["nar"], lines, *options)
    assert code == 0 and "failed: no device" in out and out.count("model> ") == 2


def test_the_player_hears_the_answer_while_it_is_written(runs, tmp_path, monkeypatch, capsys):
    heard, player = tmp_path / "heard.wav", tmp_path / "player"
    player.write_text(f'#!/bin/sh\n[ "$1" = "-" ] && cat > {heard}\n')
    player.chmod(0o755)
    out = ["--out", str(tmp_path / "out")]
    code, shown = talk(monkeypatch, capsys, runs["nar"], ["a cat sat"], "--play", f"{player} -", *out, *SPOKEN)
    assert code == 0 and "failed" not in shown
    whole, rate_hz = soundfile.read(next((tmp_path / "out").glob("*.wav")))
    sound = heard.read_bytes()
    assert sound[:4] == b"RIFF" and int.from_bytes(sound[24:28], "little") == rate_hz
    samples = np.frombuffer(sound[44:], dtype="<i2") / 32767
    assert len(samples) == len(whole) and np.abs(samples - whole).max() < 1e-4  # `toy` streams exactly
    player.write_text("#!/bin/sh\necho no device >&2\nexit 1\n")
    code, shown = talk(monkeypatch, capsys, runs["nar"], ["a cat sat"], "--play", f"{player} -", *SPOKEN)
    assert code == 0 and "failed: no device" in shown


def test_room():
    model = tiny_model()
    assert room_of(model) == 1024 and room_of(model, 90) == 90
    for wrong in (2000, -1):
        with pytest.raises(ConfigError, match=r"--room: must lie in 1 to 1024 \(positions of the model\), got"):
            room_of(model, wrong)


def test_questions_stand_alone_when_asked_to(runs, monkeypatch, capsys):
    code, shown = talk(monkeypatch, capsys, runs["ttt"], ["a cat", "on a mat", "/show"], "--single")
    assert code == 0 and "2 turns" in shown
    code, shown = talk(monkeypatch, capsys, runs["ttt"], ["a cat", "on a mat", "/show"])
    assert code == 0 and "4 turns" in shown


def test_speech_is_written_as_tokens_too(runs, tmp_path, monkeypatch, capsys):
    from ttt.audio.tokens import read_tokens

    talk(monkeypatch, capsys, runs["nar"], ["say a lot", "and more"], "--out", str(tmp_path / "out"), *SPOKEN)
    written = sorted((tmp_path / "out").glob("*.tokens.json"))
    assert written
    for path in written:
        turn = json.loads((tmp_path / "out" / f"{path.name.split('.')[0]}.json").read_text())
        codec = Toy().load()
        codes = read_tokens(path, codec.num_codes, 1, codec.frame_rate_hz)
        assert codes.reshape(-1).tolist() == np.reshape(turn["codes"], -1).tolist()


def test_a_model_with_the_tokens_of_llada_tts(tmp_path, monkeypatch, capsys):
    """Text in, frames of codes out, no place for a system message; the history goes on."""
    from tests.conftest import SENTENCES
    from ttt.config.schema import ModelSection
    from ttt.data.read.examples import read_examples
    from ttt.model.causal_lm import build_lm
    from ttt.registry.families import INITIALIZER
    from ttt.text.tokenizer import train_bpe

    sections = {
        "objective": {"name": "nar", "noised": "speech", "constraint": "frame"},
        "tasks": [{"name": "tts", "system": ""}],
        "eval": {"sampler": {"name": "blockwise", "canvas": "speech", "block_length": 4, "gen_length": 8, "diffusion_steps": 8},
                 "max_tokens": 12},
    }  # fmt: skip
    run = make_run(tmp_path / "run", "nar", **sections)
    tokenizer = train_bpe(SENTENCES * 3, 300, 32, 1, "llada_tts")
    section = ModelSection(preset="toy", attention="sdpa", init=INITIALIZER.build("normal", "model.init"))
    build_lm(section, tokenizer, 1).save(run / "model")
    save = tmp_path / "talk.jsonl"
    code, out = talk(
        monkeypatch, capsys, run, ["a cat", "/system be kind", "on", "/set sampler threshold", "on", f"/save {save}"]
    )
    assert code == 0 and "chat: this model's template has no place for a system message ('be kind')" in out
    assert out.count("diffusion calls") == 3
    (kept,) = read_examples(save)
    assert [t.role for t in kept.turns] == ["system", *["user", "assistant"] * 3]
