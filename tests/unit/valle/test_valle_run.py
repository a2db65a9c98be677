"""From wavs to sound by the command line, with every verb that a causal LM goes through: nothing there knows the class."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ttt.audio.wav import read
from ttt.cli.main import main
from ttt.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[3]
SMALL = [
    "model.arch={name: valle, dim: 16, heads: 2, layers: 1, dropout: 0.1}", "train.steps=4", "train.eval_every_steps=4",
    "train.log_every_steps=2", "train.warmup_steps=1", "train.generate_items=2", "train.tensorboard=false",
    "eval.sampler={name: valle, max_frames: 6, min_frames: 2}", "eval.batch_size=4", "eval.bootstrap=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    import importlib.util

    folder = tmp_path_factory.mktemp("chords")
    spec = importlib.util.spec_from_file_location("chords_for_tests", ROOT / "egs/toy/local/chords.py")
    made = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ttt.registry.families.CODEC.register", lambda name: lambda cls: cls)
        patch.setitem(__import__("sys").modules, "chords_for_tests", made)
        spec.loader.exec_module(made)
    made.make(folder / "corpus", 1, 40)
    assert verb("tokenize", folder) == verb("examples", folder) == 0
    assert train(folder, folder / "run", "train.save_every_steps=2") == 0
    return folder


def verb(name: str, world: Path, *settings: str) -> int:
    return main([
        name, "--config", str(ROOT / "egs/toy/conf/audiolm.yaml"), f"plugins=[{ROOT}/egs/toy/local/chords.py]",
        f"data.corpus={world}/corpus", f"data.dir={world}/data", f"eval.examples=[{world}/data/test.jsonl]", *SMALL, *settings,
    ])  # fmt: skip


def train(world: Path, run: Path, *settings: str) -> int:
    return verb("train", world, f"run.dir={run}", *settings)


def test_the_log_tells_books_apart(world):
    last = json.loads((world / "run/metrics.jsonl").read_text().splitlines()[-1])
    for key in ("dev/ppl/book0", "dev/ppl/book1", "dev/top10/ar", "dev/top10/nar/book1", "train/nll/ar/end"):
        assert key in last, key
    assert last["dev/loss"] == pytest.approx((last["dev/loss/ar"] + last["dev/loss/nar"]) / 2)
    assert "gen/continuation/length_ratio" in last


def test_a_run_that_was_stopped_ends_the_same(world, tmp_path):
    import shutil

    shutil.copytree(world / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/step-00000004")
    assert train(world, tmp_path / "again", "train.save_every_steps=2") == 0
    one, two = (
        load_file(f / "checkpoints/step-00000004/model/model.safetensors") for f in (world / "run", tmp_path / "again")
    )
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_voices_from_the_corpus_to_the_answers(world, tmp_path, capsys):
    """Items with a voice_vector: examples, training, resume (bit for bit), answers with guidance; a store is refused."""
    import shutil

    shutil.copytree(world / "corpus", tmp_path / "corpus")
    shutil.copytree(world / "data", tmp_path / "data")
    for items in (tmp_path / "corpus").glob("*.items.jsonl"):
        lines = [json.loads(line) for line in items.read_text().splitlines()]
        items.write_text("".join(json.dumps({**x, "voice_vector": [n % 2, 1 - n % 2]}) + "\n" for n, x in enumerate(lines)))
    assert verb("examples", tmp_path, "--overwrite") == 0
    told = ("model.arch.voice_dim=2", "objective.voice_drop=0.3")
    assert train(tmp_path, tmp_path / "run", "train.save_every_steps=2", *told) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/step-00000004")
    assert train(tmp_path, tmp_path / "again", "train.save_every_steps=2", *told) == 0
    one, two = (
        load_file(tmp_path / f / "checkpoints/step-00000004/model/model.safetensors") for f in ("run", "again")
    )
    assert "ar_voice.null" in one and all(torch.equal(one[k], two[k]) for k in one)
    guided = (*told, f"run.dir={tmp_path / 'run'}", "eval.sampler.voice_scale=2", "eval.limit=3")
    assert verb("generate", tmp_path, *guided) == 0
    assert len((tmp_path / "run/eval/test.generations.jsonl").read_text().splitlines()) == 3
    assert main(["data", "stats", str(tmp_path / "data/train.jsonl"), "--tokenizer", str(tmp_path / "data/tokenizer")]) == 0
    call = ["continue", str(tmp_path / "corpus/wav/test-0000.wav"), "--run", str(tmp_path / "run")]
    (tmp_path / "voice.json").write_text("[1, 0]")
    (tmp_path / "odd.json").write_text("[1, 0, 0]")
    assert main([*call, "--voice-vector", str(tmp_path / "voice.json"), "eval.sampler.voice_scale=2"]) == 0
    for more in ([], ["--voice-vector", str(tmp_path / "odd.json")]):
        capsys.readouterr()
        assert main([*call, *more, "--overwrite"]) == 2
        assert "reads a vector of 2 numbers" in capsys.readouterr().err
    call[-1] = str(world / "run")
    assert main([*call, "--voice-vector", str(tmp_path / "voice.json"), "--out", str(tmp_path / "out")]) == 2
    assert "reads no vector" in capsys.readouterr().err
    pack = ["data", "pack", str(tmp_path / "data/train.jsonl"), "--out", str(tmp_path / "store")]
    assert main([*pack, "--tokenizer", str(tmp_path / "data/tokenizer")]) == 2
    assert "voice_vector, which a store does not keep" in capsys.readouterr().err and not (tmp_path / "store").exists()


def test_averages_the_best_checkpoint_and_float16_serve_this_class_too(world, tmp_path):
    run = tmp_path / "run"
    options = ("ema=0.5", "autocast=float16", "eval_every_steps=2", "keep_best=dev_ema/loss", "save_every_epochs=0.25")
    assert train(world, run, "train.lr=0.01", *(f"train.{option}" for option in options)) == 0
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["dev/loss"] != last["dev_ema/loss"] and last["train/loss_scale"] > 1
    rows = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 2, 4, 4] and rows[0]["codes"] > 0
    assert not (run / "tensorboard").exists()
    codes = {}
    for weights in ("raw", "ema"):
        out = tmp_path / weights
        place = (f"run.dir={run}", f"eval.checkpoint={run}/checkpoints/best", f"eval.weights={weights}", f"eval.out={out}")
        assert verb("generate", world, *place, "eval.limit=2", "eval.temperature=0") == 0
        lines = (out / "test.generations.jsonl").read_text().splitlines()
        codes[weights] = [json.loads(line)["codes"] for line in lines]
    assert codes["raw"] != codes["ema"]


def test_second_stage_starts_from_the_first_and_leaves_it_alone(world, tmp_path):
    start = f"train.init_from={world / 'run'}"
    assert train(world, tmp_path / "nar", start, "objective.stage=2", "train.steps=2", "train.generate_items=0") == 0
    before, after = (
        load_file(f / "model/model.safetensors")
        for f in (world / "run/checkpoints/step-00000004", tmp_path / "nar/checkpoints/step-00000002")
    )
    moved = {k.split("_")[0] for k in before if not torch.equal(before[k], after[k])}
    assert moved == {"nar"}


def test_generate_score_and_report(world, capsys):
    out, run = world / "run/eval", f"run.dir={world / 'run'}"
    assert [verb(name, world, run) for name in ("generate", "score", "report")] == [0, 0, 0]
    records = [json.loads(line) for line in (out / "test.generations.jsonl").read_text().splitlines()]
    assert len(records) == 24 and all(2 <= len(r["codes"]) <= 6 and len(r["codes"][0]) == 2 for r in records)
    assert all(r["calls"]["diffusion"] == 1 and r["calls"]["ar"] >= 2 for r in records)
    card = json.loads((out / "card.json").read_text())
    assert card["config"]["model"]["arch"]["name"] == "valle" and "continuation/length_ratio" in str(card)
    assert "length_ratio" in capsys.readouterr().out


def test_the_published_recipe_says_how_good_it_is(world, tmp_path):
    """Its tasks and its evaluation, on this run: nothing of what it reports is blank, and the codec's floor is below."""
    import yaml

    recipe = yaml.safe_load((ROOT / "recipes/audiolm/conf/base.yaml").read_text())
    asked = [
        f"tasks={json.dumps(recipe['tasks'])}",
        *(f"eval.{k}={str(recipe['eval'][k]).lower()}" for k in ("forced", "floor")),
    ]
    asked += [f"run.dir={world / 'run'}", f"eval.out={tmp_path}", "eval.limit=3"]
    assert [verb(name, world, *asked) for name in ("generate", "score")] == [0, 0]
    metrics = json.loads((tmp_path / "card.json").read_text())["metrics"]
    found = {name: metrics[f"continuation/{name}"]["value"] for name in ("top10_ar", "top10_nar", "mel_distance")}
    assert 0 <= found["top10_ar"] <= 1 and 0 <= found["top10_nar"] <= 1
    assert metrics["continuation/floor_mel_distance"]["value"] < 1 < found["mel_distance"]


def test_codes_alone_are_scored(world, tmp_path, caplog, capsys):
    """Accuracies and perplexities need no codec; what is heard is left out, with a line."""
    import math

    task = (
        "tasks=[{name: continuation, cut: {least: 8}, measure: [mel_distance, token_entropy], "
        "forced: [top10/ar, nll/ar/book0, ppl/book0]}]"
    )
    asked = [task, f"run.dir={world / 'run'}", f"eval.out={tmp_path}", "eval.limit=3", "eval.forced=true", "codec=null"]
    with caplog.at_level("INFO", "ttt"):
        assert [verb(name, world, *asked) for name in ("generate", "score")] == [0, 0]
    metrics = {k.partition("/")[2]: m["value"] for k, m in json.loads((tmp_path / "card.json").read_text())["metrics"].items()}
    assert 0 <= metrics["top10_ar"] <= 1 and metrics["ppl_book0"] == pytest.approx(math.exp(metrics["nll_ar_book0"]))
    assert "mel_distance" not in metrics and "length_ratio" not in metrics and metrics["empty_rate"] == 0
    assert "no codec and no judge: of task 'continuation', only what needs none is scored (not: mel_distance, " in caplog.text
    assert 0 < metrics["token_entropy"] <= math.log2(6)  # at most six frames
    assert verb("score", world, *asked, task.replace("token_entropy", "{name: gen_ppl}"), "--overwrite") == 2
    assert "metric 'gen_ppl': path is not set: point the metric's path at" in capsys.readouterr().err
    assert (tmp_path / "card.json").exists()


def test_codes_in_python(world):
    """An array [frames, codebooks] is a question, with the answer that the recording itself gets, and without a codec."""
    import numpy as np

    import ttt

    settings = ["eval.sampler={name: valle, temperature: 0.0, min_frames: 4, max_frames: 6}"]
    heard, deaf = (ttt.load(world / "run", *settings, sound=sound) for sound in (True, False))
    wave = world / "corpus/wav/test-0000.wav"
    (codes,) = heard.codec.encode([read(wave)])
    answer = deaf.generate(codes.ids)
    made = answer.generation.codes
    assert made.dtype == np.int32 and made.shape[1] == 2 and 4 <= len(made) <= 6 and answer.sound is None
    others = [heard.generate(question).generation.codes for question in (wave, codes.ids.astype(int))]
    assert all(made.tolist() == other.tolist() for other in others)
    for wrong in (codes.ids[:, :1], codes.ids[0], codes.ids.astype(float), codes.ids[:0]):
        with pytest.raises(DataError, match=r"codes are whole numbers \[frames, 2\] of one frame or more"):
            deaf.generate(wrong)
    for other in (codes.ids.tolist(), torch.from_numpy(codes.ids)):
        with pytest.raises(DataError, match="a numpy array of codes or turns, got (list|Tensor)"):
            deaf.generate(other)


def test_sound_goes_on(world, tmp_path, capsys):
    wav = world / "corpus/wav/test-0000.wav"
    call = ["continue", str(wav), "--run", str(world / "run"), "--out", str(tmp_path), "--seconds", "0.1"]
    assert main([*call, "--prompt-seconds", "0.2", "eval.sampler.min_frames=5"]) == 0
    alone, full = (read(tmp_path / f"test-0000_{part}.wav") for part in ("continuation", "full"))
    assert alone.duration_s == pytest.approx(0.1) and full.duration_s == pytest.approx(0.3)
    assert full.samples[-len(alone.samples) :] == pytest.approx(alone.samples, abs=1e-3)
    assert main(call) == 2 and "exists; --overwrite replaces it" in capsys.readouterr().err
    assert main([*call[:-2], "--overwrite", "--hole", "0.1:0.2"]) == 2
    assert "model.arch.nar=masked_all" in capsys.readouterr().err


def test_a_hole_is_filled_and_both_sides_stay(world, tmp_path):
    import ttt

    run = tmp_path / "masked"
    assert train(
        world, run, "model.arch={name: valle, dim: 16, heads: 2, layers: 1, nar: masked_all}", "train.steps=2",
        "objective={name: valle_masked, codebooks: all}", "train.generate_items=0",
        "eval.sampler={name: valle_masked, first_codebook: masked, steps_total: 3, max_frames: 6}",
    ) == 0  # fmt: skip
    wav = world / "corpus/wav/test-0000.wav"
    assert main(["continue", str(wav), "--run", str(run), "--out", str(tmp_path / "out"), "--hole", "0.1:0.2"]) == 0
    alone, full = (read(tmp_path / f"out/test-0000_{part}.wav") for part in ("continuation", "full"))
    codec = ttt.load(run).codec
    (codes,) = codec.encode([read(wav)])
    (whole,) = codec.decode([codes])  # as the model hears it
    a, b = (round(t * codec.rate_hz) for t in (0.1, 0.2))
    assert len(alone.samples) == b - a and len(full.samples) == len(whole.samples)
    assert full.samples[a:b] == pytest.approx(alone.samples, abs=1e-3)
    assert full.samples[:a] == pytest.approx(whole.samples[:a], abs=1e-3)
    assert full.samples[b:] == pytest.approx(whole.samples[b:], abs=1e-3)


@pytest.mark.parametrize("chunk_frames", [0, 2])
def test_answers_stream_piece_by_piece(world, tmp_path, chunk_frames):
    out = tmp_path / "out"
    sampler = (
        f"eval.sampler={{name: valle, temperature: 0.0, min_frames: 6, max_frames: 6, chunk_frames: {chunk_frames}}}"
    )
    call = ["stream", str(world / "run"), "--examples", str(world / "data/test.jsonl"), "--limit", "2", "--chunks", "2"]
    assert main([*call, "--warmup", "0", "--out", str(out), sampler]) == 0
    found = json.loads((out / "stream.json").read_text())
    assert found["conditions"]["sampler"] == "valle" and found["measures"]["first_sound_s"]["n"] == 2
    for answer in found["answers"]:
        assert answer["sound_s"] == pytest.approx(6 / 50) and answer["pieces"] >= 2
        pieces = sorted((out / answer["uid"]).glob("*.wav"))
        assert len(pieces) == answer["pieces"]
        joined = [x for p in pieces for x in read_any(p)]
        assert joined == pytest.approx(read(out / f"{answer['uid']}.wav").samples, abs=1e-4)
        if chunk_frames:  # the first sound does not wait for the end
            assert answer["first_sound_s"] < answer["seconds"]


def read_any(path: Path) -> list[float]:
    """Samples of a sound of any length."""
    import soundfile

    return soundfile.read(path, dtype="float32")[0].tolist()


@pytest.mark.parametrize(("more", "message"), [
    (["--prompt-seconds", "-1"], "--prompt-seconds: must be a time > 0, got -1"),
    (["--seconds", "nan"], "--seconds: must be a time > 0, got nan"),
    (["--prompt-seconds", "0.001"], "--prompt-seconds: 0.001 s are less than a frame of the codec (0.02 s)"),
    (["--hole", "0.1:9"], "s long; --hole 0.1:9.0 does not lie inside"),
    (["--hole", "0.101:0.102"], "--hole 0.101:0.102 holds no whole frame"),
    (["--hole", "0.2:0.1"], "--hole: needs 0 < A < B"),
    (["--hole", "0.1"], "--hole: expected two times in seconds like 1.5:2.5, got '0.1'"),
    (["codec=null"], "codec: missing; sound files need one"),
    (["codec={name: encodec, path: /nope}"], "/nope: no encodec model here"),
    (["tasks=[{name: tts}]"], "was not trained to go on (its tasks: tts; needed: continuation)"),
    (["eval.sampler={name: valle, topk: 3}"], "Did you mean 'top_k'?"),
])  # fmt: skip
def test_what_cannot_go_on_is_one_line_and_writes_nothing(world, tmp_path, capsys, more, message):
    wav = str(world / "corpus/wav/test-0000.wav")
    assert main(["continue", wav, "--run", str(world / "run"), "--out", str(tmp_path / "out"), *more]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and message in said[0], said
    assert not (tmp_path / "out").exists()


def test_sound_files_that_cannot_be_heard(world, tmp_path, capsys):
    import numpy as np
    import soundfile

    wave = read(world / "corpus/wav/test-0000.wav")
    good = tmp_path / "good.wav"
    soundfile.write(good, wave.samples, wave.rate_hz)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "short.wav", wave.samples[:160], 16000)
    (tmp_path / "text.wav").write_text("hello")
    for name, message in (
        ("missing", "no such file"), ("empty", "holds no samples"), ("short", "10 ms long, expected at least 50 ms"),
        ("text", "not a readable sound file"), ("good", "has the name of"),
    ):  # fmt: skip
        call = ["continue", str(good), str(tmp_path / f"{name}.wav"), "--run", str(world / "run")]
        assert main([*call, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and f"{name}.wav: " in said[0] and message in said[0], said
        assert not (tmp_path / "out").exists()
    assert main(["continue", str(good), "--run", str(world / "run"), "--out", str(tmp_path / "text.wav/a")]) == 2
    assert "a file stands where a folder is needed" in capsys.readouterr().err


def test_sound_of_another_rate_and_of_two_channels_is_heard_as_it_was(world, tmp_path, caplog):
    import numpy as np
    import soundfile

    from ttt.audio.signal import resample

    wave = read(world / "corpus/wav/test-0000.wav")
    soundfile.write(tmp_path / "one.wav", wave.samples, wave.rate_hz)
    soundfile.write(tmp_path / "two.wav", np.stack([wave.samples, wave.samples], 1), wave.rate_hz)
    soundfile.write(tmp_path / "fast.wav", resample(wave, 44100).samples, 44100)
    names = [str(tmp_path / f"{n}.wav") for n in ("one", "two", "fast")]
    call = ["continue", *names, "--run", str(world / "run"), "--out", str(tmp_path / "out"), "data.row_tokens=8"]
    assert main([*call, "eval.sampler={name: valle, temperature: 0.0, min_frames: 4, max_frames: 6}"]) == 0
    made = [read(tmp_path / f"out/{n}_continuation.wav").samples.tolist() for n in ("one", "two", "fast")]
    assert made[0] == made[1] == made[2]
    assert "two.wav: " in caplog.text and "training had at most 8 in a row" in caplog.text


def test_objectives_samplers_and_verbs_of_another_class_are_refused(world, tmp_path, capsys):
    for settings, said in (
        (("objective=ttt",), "objective 'ttt' works with architecture 'causal_lm', the run has 'valle'"),
        (("model.arch=causal_lm", "model.preset=toy"), "objective 'valle' works with architecture 'valle'"),
        (("model.preset=toy",), "model.preset: belongs to model.arch=causal_lm"),
    ):
        assert train(world, tmp_path / "run", *settings) == 2
        assert said in capsys.readouterr().err
    assert (
        main(["likelihood", "--config", str(world / "run/config.yaml"), f"eval.examples=[{world}/data/test.jsonl]"])
        == 2
    )
    assert "architecture 'valle' writes no text" in capsys.readouterr().err
    assert main(["model", "show", str(world / "run")]) == 2
    assert "architecture 'valle'; this works with 'causal_lm' only" in capsys.readouterr().err
    assert (
        main(["estimate", str(ROOT / "recipes/audiolm/conf/base.yaml"), f"data.tokenizer={world}/data/tokenizer"]) == 2
    )
    assert "this counts causal LMs only" in capsys.readouterr().err


def test_doctor_reads_the_log_and_leaves_the_network_alone(world, capsys):
    assert main(["doctor", str(world / "run")]) in (0, 1)  # four updates may look ill
    said = capsys.readouterr().out
    assert "probes look into language models" in said and "fault" in said


def test_a_sampler_of_books_needs_a_model_of_books():
    from ttt.api import decode_settings
    from ttt.config.load import build_config

    objective = {"name": "nar"}
    with pytest.raises(
        ConfigError, match="eval.sampler 'valle' works with architecture 'valle', the run has 'causal_lm'"
    ):
        decode_settings(build_config({"objective": objective, "eval": {"sampler": "valle"}}))
