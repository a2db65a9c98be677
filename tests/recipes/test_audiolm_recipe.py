"""recipes/audiolm: every configuration fits together, and the script gives the commands it says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.warm_python import programs
from ttt.api import decode_settings
from ttt.config.load import load_config, to_plain
from ttt.eval.metrics import rests_on
from ttt.interfaces import ScheduleState
from ttt.model.arch import check_arch
from ttt.registry.families import METRIC

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "recipes/audiolm/conf").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_objective_network_and_sampler_fit(path):
    config = load_config([path], ["run.dir=x", "data.train=x", "data.tokenizer=x", "codec.path=x"])
    check_arch(config.model.arch, config.objective.arch, "objective")
    decode_settings(config)
    if path.stem == "delay":  # one language model for all codebooks
        assert config.eval.max_tokens == config.data.pattern.index(500, config.codec.num_codebooks).size + 1
        return
    config.objective.check_network(config.model.arch)
    assert (config.model.arch.nar == "masked_all") == (getattr(config.eval.sampler, "first_codebook", "ar") == "masked")
    frames = config.eval.sampler.max_frames
    assert config.eval.max_tokens > frames * 4, "eval.max_tokens would cut answers before max_frames"


def test_the_report_says_how_good_it_is():
    """Accuracies on the true answers, distance of the sound, what the codec costs; voices only with an encoder of them."""
    files = [ROOT / "recipes/audiolm/conf/base.yaml", ROOT / "recipes/audiolm/conf/more/speaker.yaml"]
    for given, wanted in ((files[:1], {"mel_distance"}), (files, {"mel_distance", "speaker_similarity"})):
        config = load_config(given, ["run.dir=x", "data.train=x", "data.tokenizer=x", "codec.path=x"])
        (task,) = config.tasks
        built = {name: METRIC.build(node, name) for name, node in task.metrics.items()}
        assert config.eval.floor and config.eval.forced
        assert {built[name].stat for name in ("top10_ar", "top10_nar")} == {"top10/ar", "top10/nar"}
        assert {n for n, m in built.items() if m.needs_audio} == wanted, "what has a floor"
        assert (config.speaker is not None) == ("speaker_similarity" in wanted)
        assert not any("judge" in rests_on(m) for m in built.values()), "there is no text"


# The published values.  A default that moves is a change of the recipe.
PUBLISHED = {
    "codec.num_codebooks": 4,
    "model.arch": {
        "name": "valle", "dim": 1024, "heads": 16, "layers": 12, "dropout": 0.1, "norm_first": True, "prenet": False,
        "prepend_bos": True, "positions": "sines", "continuous_positions": False, "nar": "stages", "nar_scale_factor": 1.0,
        "nar_prompt_sees_target": False, "share_tables": False, "share_embeddings": False,
    },
    "objective.name": "valle", "objective.stage": 0, "objective.eos": "first", "objective.first_code": True,
    "objective.nar_prefix": "none", "objective.mask": {"name": "prefix"},
    "objective.cut": {"mode": "fixed", "share": 0.4, "least": 50, "by": "batch"},
    "data.pack": False, "data.buckets": 10, "data.batch_s": 150, "data.quadratic_s": 10,
    "train.epochs": 20, "train.accumulate": 1, "train.lr": 0.05, "train.betas": [0.9, 0.95], "train.eps": 1e-8,
    "train.warmup_steps": 200, "train.autocast": "none", "train.log_every_steps": 100, "train.eval_every_steps": 10000,
    "train.save_every_steps": 10000, "train.keep_checkpoints": 20, "run.seed": 42,
    "train.schedule": {"name": "eden", "lr_batches": 5000, "lr_epochs": 4},
    "train.optimizer": {
        "name": "scaled_adam", "clipping_scale": 2.0, "clipping_update_period": 1000, "clip_gradient": True,
        "scalar_lr_scale": 0.1, "param_min_rms": 1e-5, "param_max_rms": 3.0, "scalar_max": 10.0, "size_update_period": 4,
    },
    "eval.sampler": {"name": "valle", "temperature": 1.0, "top_k": 0, "top_p": 1.0, "nar_temperature": 0.0, "max_frames": 10 * 50},
}  # fmt: skip


def test_the_published_values():
    base = ROOT / "recipes/audiolm/conf/base.yaml"
    plain = to_plain(load_config([base], ["run.dir=x", "data.train=x", "data.tokenizer=x", "codec.path=x"]))
    for key, wanted in PUBLISHED.items():
        found = plain
        for part in key.split("."):
            found = found[part]
        if isinstance(wanted, dict):
            found = {k: found[k] for k in wanted}
        assert (list(found) if isinstance(found, tuple) else found) == wanted, key
    (task,) = plain["tasks"]
    assert (task["cut"]["mode"], task["cut"]["share"], task["cut"]["least"]) == ("fixed", 0.4, 50)
    assert plain["data"]["row_tokens"] >= 15 * 50 * 4 + 50
    schedule = load_config([base], []).train.schedule
    factors = [schedule.warmup(at) * schedule.decay(at) for at in (ScheduleState(0, 0, 0.0, 200), ScheduleState(5000, 4, 0.0, 200))]
    assert [0.05 * f for f in factors] == pytest.approx([0.025, 0.035355], abs=1e-6)


def test_the_forks_values_and_the_steps():
    def at(name):
        return load_config([ROOT / f"recipes/audiolm/conf/{name}.yaml"], [])

    fork = at("fork")
    assert not fork.model.arch.prepend_bos and fork.model.arch.nar_prompt_sees_target
    assert fork.objective.eos == "padding" and not fork.objective.first_code
    assert not fork.train.optimizer.clip_gradient
    assert fork.train.optimizer.clipping_update_period == 1000
    assert (at("ar").objective.stage, at("nar").objective.stage) == (1, 2)


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    script = ROOT / "recipes/audiolm/run.sh"
    return subprocess.run(
        ["bash", str(script), *arguments], capture_output=True, text=True, env={**os.environ, **programs(), **(env or {})}
    )


@pytest.fixture
def recorded(tmp_path):
    """Runs the script with a recorder for `ttt`; -> what it was called with."""
    log, recorder = tmp_path / "calls", tmp_path / "ttt"
    recorder.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    recorder.chmod(0o755)

    def call(*arguments: str) -> list[str]:
        log.unlink(missing_ok=True)
        done = run(*arguments, env={"TTT": str(recorder)})
        assert done.returncode == 0, done.stderr
        return log.read_text().splitlines()

    return call


def verbs(calls: list[str]) -> list[str]:
    return [c.split()[0] for c in calls]


def test_stages_give_their_commands(tmp_path, recorded):
    (tmp_path / "cuts").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / f"cuts/cuts_{split}.jsonl.gz").touch()
    exp = tmp_path / "exp"
    (exp / "checkpoints").mkdir(parents=True)
    common = ("--exp", str(exp), "--stage", "1", "--stop-stage", "1", "train.lr=0.01")
    calls = recorded("--cuts", str(tmp_path / "cuts"), *common)
    assert verbs(calls) == [*["data"] * 3, "tokenizer"] and calls[-1].endswith("train.lr=0.01")
    cuts = f"data convert --from lhotse_codes {tmp_path}/cuts/cuts_validation.jsonl.gz {exp}/data/dev.jsonl"
    assert calls[1] == f"{cuts} min_duration_s=5 max_duration_s=15"
    more = ("--min-seconds", "2", "--max-seconds", "8", "--convert", "root=/r prompt_share=0.3", "--overwrite")
    calls = recorded("--cuts", str(tmp_path / "cuts"), *common, *more)
    assert calls[1] == f"{cuts} min_duration_s=2 max_duration_s=8 root=/r prompt_share=0.3 --overwrite"
    (exp / "data/train.jsonl").touch()
    stages = ("--stage", "2", "--stop-stage", "4", "--exp", str(exp), "--sounds", "a.wav b.wav")
    calls = recorded("--conf", "masked", *stages, "run.seed=3")
    assert verbs(calls) == ["train", "generate", "score", "report", "continue"]
    assert "--config recipes/audiolm/conf/masked.yaml" in calls[0] and "more/speaker.yaml" not in calls[0]
    assert all(c.endswith("run.seed=3") for c in calls)
    assert calls[-1] == f"continue a.wav b.wav --run {exp} run.seed=3"
    calls = recorded("--speaker", "/x", "--stage", "3", "--exp", str(exp))
    assert "base.yaml --config recipes/audiolm/conf/more/speaker.yaml speaker.path=/x" in calls[1]


def test_a_folder_of_wavs_becomes_a_corpus(tmp_path, recorded):
    for split in ("train", "dev", "test"):
        (tmp_path / "wavs" / split).mkdir(parents=True)
    exp = tmp_path / "exp"
    calls = recorded("--wavs", str(tmp_path / "wavs"), "--exp", str(exp), "--stage", "1", "--stop-stage", "1")
    assert verbs(calls) == [*["data"] * 3, "tokenize", "examples"]
    assert calls[0] == (
        f"data convert --from folder {tmp_path}/wavs/train {exp}/data/corpus min_duration_s=5 max_duration_s=15 --split train "
        "--tasks continuation"
    )
    assert all(f"data.corpus={exp}/data/corpus " in c for c in calls[3:])


def test_the_second_step_reads_the_data_of_the_first(tmp_path, recorded):
    one, two = tmp_path / "ar", tmp_path / "nar"
    (one / "data/corpus").mkdir(parents=True)
    (one / "data/train.jsonl").touch()
    (two / "checkpoints").mkdir(parents=True)
    start = f"train.init_from={one}"
    calls = recorded("--stage", "2", "--conf", "nar", "--exp", str(two), "--data", str(one / "data"), start)
    assert verbs(calls) == ["train", "generate", "score", "report"], "nothing is encoded again"
    for call in calls:
        assert f"run.dir={two} data.dir={one}/data data.tokenizer={one}/data/tokenizer" in call and call.endswith(start)
        assert f"data.corpus={one}/data/corpus " in call, "what sounds are compared with"
        assert f"data.train={one}/data/train.jsonl" in call and f"eval.examples=[{one}/data/test.jsonl]" in call


def test_the_real_verbs_take_what_the_script_gives(tmp_path):
    """Up to the first thing that is missing, the codec's weights: sound files are sorted out by length before."""
    import numpy as np

    from ttt.audio.wav import write
    from ttt.data.manifest import read_manifest
    from ttt.types import Waveform

    for split in ("train", "dev", "test"):
        for seconds in (0.3, 1.0):
            sound = np.zeros(round(16000 * seconds), dtype=np.float32)
            write(tmp_path / "wavs" / split / f"{seconds}.wav", Waveform(sound, 16000))
    stage = ("--stage", "1", "--stop-stage", "1", "--min-seconds", "0.5", "--exp", str(tmp_path / "exp"), "--overwrite")
    done = run("--wavs", str(tmp_path / "wavs"), "--codec", str(tmp_path / "none"), *stage)
    assert done.returncode == 2 and f"{tmp_path}/none: no encodec model here" in done.stderr, done.stderr
    assert done.stderr.count("1 skipped: shorter than 0.5 s") == 3
    (kept,) = read_manifest(tmp_path / "exp/data/corpus/test.jsonl")
    assert kept.id == "1.0" and kept.text == ""


@pytest.mark.parametrize(("arguments", "message"), [
    (("--conf", "nothing"), "no recipes/audiolm/conf/nothing.yaml"),
    (("--cuts", "a", "--corpus", "b"), "give one of them"),
    (("--corpus", "a", "--wavs", "b"), "give one of them"),
    (("--corpus", "a", "--min-seconds", "3"), "--corpus: is taken as it is; 'ttt data convert' has chosen its lengths"),
    (("--wavs", "/nowhere"), "no such folder: /nowhere/train"),
    (("--stage", "1", "--stop-stage", "1"), "--wavs DIR, --corpus DIR or --cuts DIR is missing"),
    (("--stage", "2", "--data", "/elsewhere"), "missing /elsewhere/train.jsonl: run stage 1 first"),
    (("--stage", "2", "--exp", "/nowhere"), "missing /nowhere/data/train.jsonl: run stage 1 first"),
])  # fmt: skip
def test_what_is_missing_is_said(arguments, message):
    done = run(*(("--stage", "1", "--stop-stage", "1", *arguments) if "--stage" not in arguments else arguments))
    assert done.returncode == 2 and message in done.stderr
