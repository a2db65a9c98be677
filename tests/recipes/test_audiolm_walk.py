"""The README of the published AudioLM program, item by item, as its user would type it here, on tiny data of its form.

The three tables of recipes/audiolm/README.md stand in this file and are checked by it; ``python -m
tests.recipes.test_audiolm_walk`` writes them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.recipes.audiolm_world import make_world
from tests.warm_python import programs
from ttt.audio.wav import read
from ttt.config.load import load_config, to_plain

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "recipes/audiolm/README.md"
BASE = ROOT / "recipes/audiolm/conf/base.yaml"
RUN = "./recipes/audiolm/run.sh"
# Smaller than published, and a fixed length of answers, so that lengths can be checked.
SMALL = ["model.arch.dim=16", "model.arch.heads=2", "model.arch.layers=1", "run.threads=1", "eval.bootstrap=20"]
PLACES = re.compile(r"(?<![\w/.])(exp|data|models|prompts|infer)/")


@dataclass(frozen=True)
class Step:
    """``there``: the published program's item.  ``here``: as it is typed.  ``found``: what came of it, from the world's folder."""

    there: str
    here: str
    found: Callable[[Path, str], str]
    small: bool = False  # the settings `SMALL` are added


def typed(step: Step, world: Path) -> str:
    """Run the step; -> all that it printed."""
    words = shlex.split(PLACES.sub(rf"{world}/\1/", step.here))
    known = programs()
    words[0] = {"ttt": known["TTT"], "python": known["PYTHON"], RUN: str(ROOT / RUN)}.get(words[0], words[0])
    done = subprocess.run(
        [*words, *(SMALL if step.small else ())], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **known}
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{step.here}\n{said}"
    return said


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def lengths(world: Path, where: str) -> tuple[int, list[str]]:
    files = sorted((world / where).glob("*.wav"))
    rates = {read(f).rate_hz for f in files}
    assert len(rates) == 1, rates
    return rates.pop(), [f.name for f in files]


def converted(world: Path, said: str) -> str:
    assert "5 rows, 3 written" in said and "1 skipped: shorter than 5 s; 1 skipped: longer than 15 s" in said
    vocab = json.loads((world / "exp/audio-lm/data/tokenizer/vocab.json").read_text())
    assert (vocab["num_codebooks"], vocab["frame_rate"]) == (4, 50.0)
    return "examples; cuts of 4.9 and 15.1 s left out and counted"


def encoded(world: Path, said: str) -> str:
    assert "5 were resampled from 16000 Hz to 32000 Hz" in said or "3 were resampled from 16000 Hz to 32000 Hz" in said, said
    assert "1 skipped: shorter than 5 s" in said
    return "codes; recordings of 16 kHz resampled to 32 kHz and counted"


def trained(world: Path, said: str) -> str:
    last = metrics(world / "exp/audio-lm")[-1]
    assert last["step"] == 60 and {"dev/top10/ar", "dev/top10/nar", "dev/ppl/book3", "dev/loss/nar"} <= last.keys()
    assert list((world / "exp/audio-lm/tensorboard").iterdir()) and list((world / "exp/audio-lm/checkpoints").iterdir())
    return "`checkpoints/`, `tensorboard/`, `metrics.jsonl` with top-10 accuracies and perplexities"


def resumed(world: Path, said: str) -> str:
    steps = [line["step"] for line in metrics(world / "exp/audio-lm") if "train/loss" in line]
    assert steps[-1] == 66 and "step-00000060" in said, said
    return "goes on from the latest checkpoint"


def two_steps(which: str) -> Callable[[Path, str], str]:
    def found(world: Path, said: str) -> str:
        last = metrics(world / "exp" / which)[-1]
        assert (f"dev/loss/{which}" in last) and ("dev/loss/ar" in last) != ("dev/loss/nar" in last)
        return f"only the {which.upper()} decoder is trained"

    return found


def scored(world: Path, said: str) -> str:
    card = json.loads((world / "exp/audio-lm/eval/card.json").read_text())["metrics"]
    names = {name.partition("/")[2] for name in card}
    assert {"top10_ar", "top10_nar", "ppl_book0", "ppl_book3", "mel_distance", "floor_mel_distance"} <= names
    return "top-10 accuracies, perplexities, mel distance, and what the codec alone costs"


def scored_alone(world: Path, said: str) -> str:
    card = json.loads((world / "exp/codes/card.json").read_text())["metrics"]
    assert "continuation/top10_ar" in card and "continuation/ppl_book1" in card and "continuation/mel_distance" not in card
    return "accuracies and perplexities; no codec is opened"


def continued(world: Path, said: str) -> str:
    rate, names = lengths(world, "infer/audio_continuation")
    assert names == ["a_continuation.wav", "a_full.wav", "b_continuation.wav", "b_full.wav"]
    assert rate == 32_000
    alone, whole = (read(world / "infer/audio_continuation" / name).duration_s for name in names[:2])
    assert alone <= 1 and whole == pytest.approx(2 + alone, abs=0.02)
    return "`a_continuation.wav`, `a_full.wav`, `b_...`, 32 kHz; prompts of any rate"


def arrays(world: Path, said: str) -> str:
    shape = said.strip().splitlines()[-1]
    assert re.fullmatch(r"\((\d+), 4\) int32", shape), said
    return "codes [T, 4] of the continuation, without a codec"


def streamed(world: Path, said: str) -> str:
    found = json.loads((world / "infer/stream/stream.json").read_text())
    assert found["measures"]["first_sound_s"]["n"] == 1
    return "sound in pieces, with the time of the first"


def prepared(world: Path, said: str) -> str:
    for split, number in (("train", 4), ("dev", 4), ("test", 4)):
        items = (world / f"exp/corpus/{split}.items.jsonl").read_text().splitlines()
        assert [json.loads(line)["task"] for line in items] == ["zero_shot_tts"] * number
    return "a corpus with its texts"


def spoke(world: Path, said: str) -> str:
    e = json.loads((world / "exp/valle/data/test.jsonl").read_text().splitlines()[0])
    assert e["turns"][0]["spans"][0] == {"text": "This is sentence 0."} and len(e["turns"][0]["spans"][1]["audio"]) == 150
    card = json.loads((world / "exp/valle/eval/card.json").read_text())["metrics"]
    assert {"zero_shot_tts/top10_ar", "zero_shot_tts/ppl_book0", "zero_shot_tts/mel_distance"} <= card.keys()
    return "text, then the acoustic prompt; the first codebook from left to right, the others behind it"


def spoken(world: Path, said: str) -> str:
    _, names = lengths(world, "infer/tts")
    assert names == ["a_continuation.wav", "a_full.wav"]
    return "`a_continuation.wav`: the text in the prompt's voice"


def other_voice(world: Path, said: str) -> str:
    for line in (world / "exp/mode4/data/train.jsonl").read_text().splitlines():
        words, heard = json.loads(line)["turns"][0]["spans"]
        assert re.fullmatch(r"This is sentence \d.", words["text"]) and len(heard["audio"]) == 150
    assert "dev/loss/nar" in metrics(world / "exp/mode4")[-1]
    return "3 s of another recording of the speaker are the prompt; the text is the answer's alone"


STEPS = (
    Step("`--manifest-dir data/tokenized --filter-min-duration 5 --filter-max-duration 15`",
         f"{RUN} --cuts data/tokenized --codec models/encodec_32khz --exp exp/audio-lm --stage 1 --stop-stage 1", converted),
    Step("recordings instead of cuts",
         f"{RUN} --wavs data/wavs --codec models/encodec_32khz --exp exp/wavs --stage 1 --stop-stage 1", encoded),
    Step("`trainer_audiolm.py --model-name audio-lm --max-duration 150 --train-stage 0 --exp-dir exp/audio-lm`",
         f"{RUN} --stage 2 --stop-stage 2 --codec models/encodec_32khz --exp exp/audio-lm", trained, small=True),
    Step("`--start-epoch 21 --num-epochs 22`: resume",
         f"{RUN} --stage 2 --stop-stage 2 --codec models/encodec_32khz --exp exp/audio-lm train.epochs=22", resumed, small=True),
    Step("`--train-stage 1`",
         f"{RUN} --stage 2 --stop-stage 2 --conf ar --codec models/encodec_32khz --exp exp/ar --data exp/audio-lm/data",
         two_steps("ar"), small=True),
    Step("`--train-stage 2`",
         f"{RUN} --stage 2 --stop-stage 2 --conf nar --codec models/encodec_32khz --exp exp/nar --data exp/audio-lm/data "
         "train.init_from=exp/ar", two_steps("nar"), small=True),
    Step("AR > 50 %, NAR > 40 % among the ten likeliest",
         f"{RUN} --stage 3 --stop-stage 3 --codec models/encodec_32khz --exp exp/audio-lm "
         "eval.sampler.max_frames=20", scored, small=True),
    Step("the same from codes alone",
         "ttt generate --config exp/audio-lm/config.yaml eval.examples=[exp/audio-lm/data/test.jsonl] eval.out=exp/codes "
         "codec=null eval.sampler.max_frames=20", lambda w, said: "answers as codes"),
    Step("",
         "ttt score --config exp/audio-lm/config.yaml eval.examples=[exp/audio-lm/data/test.jsonl] eval.out=exp/codes "
         "codec=null eval.sampler.max_frames=20", scored_alone),
    Step("`infer_audiolm.py --audio-prompts a.wav\\|b.wav --checkpoint C --output-dir infer/audio_continuation --max-duration 1`",
         "ttt continue prompts/a.wav prompts/b.wav --run exp/audio-lm --out infer/audio_continuation --seconds 1 "
         "eval.sampler.min_frames=5", continued),
    Step("`model.inference(x, x_lens, max_new_tokens=20, temperature=1.0, top_k=10)`, x [1, 150, 4]",
         "python -c \"import ttt, numpy as np; m = ttt.load('exp/audio-lm', 'eval.sampler={name: valle, top_k: 10, max_frames: 20,"
         " min_frames: 3}', sound=False); y = m.generate(np.zeros((150, 4), int)).generation.codes; print(y.shape, y.dtype)\"",
         arrays),
    Step("the cache of keys; sound while it is written",
         "ttt stream exp/audio-lm --examples exp/audio-lm/data/test.jsonl --limit 1 --warmup 0 --out infer/stream "
         "'eval.sampler={name: valle, chunk_frames: 5, min_frames: 10, max_frames: 10}'", streamed),
    Step("`--dataset libritts --text-tokens T`: preparation of VALL-E itself",
         "bash -c 'for p in train:train-clean-100 dev:dev-clean test:test-clean; do $TTT data convert --from folder "
         "data/LibriTTS/${p#*:} exp/corpus --split ${p%:*} --tasks zero_shot_tts min_duration_s=4; done'", prepared),
    Step("`trainer.py --model-name VALL-E --share-embedding true`",
         f"{RUN} --conf valle_tts --corpus exp/corpus --codec models/encodec_32khz --exp exp/valle --stage 1 --stop-stage 3 "
         "codec.num_codebooks=4 eval.sampler.max_frames=20", spoke, small=True),
    Step("`--prefix-mode 4`",
         f"{RUN} --conf valle_tts --corpus exp/corpus --codec models/encodec_32khz --exp exp/mode4 --stage 1 --stop-stage 2 "
         "codec.num_codebooks=4 objective.cut.mode=stored train.epochs=1 'tasks=[{name: zero_shot_tts, voice: other, voice_s: 3}]'",
         other_voice, small=True),
    Step("`infer.py --text-prompts P --audio-prompts a.wav --text T`",
         "ttt continue prompts/a.wav --run exp/valle --text 'Words of the prompt. Words to speak.' --out infer/tts "
         "eval.sampler.min_frames=5", spoken),
)  # fmt: skip

# Flag of the published programs -> settings here, or words.
FLAGS = (
    ("`--world-size N`, `--master-port P`", "`run.sh --gpus N`, the variable `MASTER_PORT`"),
    ("`--tensorboard true`", "train.tensorboard=true"),
    ("`--num-epochs 20`", "train.epochs=20"),
    ("`--start-epoch`, `--start-batch`", "the same command again; `train.init_from=RUN` starts from weights alone"),
    ("`--exp-dir DIR`", "`run.sh --exp DIR`; `run.dir=DIR`"),
    ("`--optimizer-name ScaledAdam`", "train.optimizer.name=scaled_adam"),
    ("`--scheduler-name Eden`", "train.schedule.name=eden"),
    ("`--base-lr 0.05`", "train.lr=0.05"),
    ("`--warmup-steps 200`", "train.warmup_steps=200"),
    ("`--seed 42`", "run.seed=42"),
    ("`--inf-check`", "`ttt doctor RUN`; numbers that are not finite always stop a run"),
    ("`--save-every-n 10000`", "train.save_every_steps=10000"),
    ("`--valid-interval 10000`", "train.eval_every_steps=10000"),
    ("`--keep-last-k 20`", "train.keep_checkpoints=20"),
    ("`--accumulate-grad-steps 1`", "train.accumulate=1"),
    ("`--dtype float32`", "train.autocast=none"),
    ("`--dtype bfloat16`", "train.autocast=bfloat16"),
    ("`--dtype float16`", "train.autocast=float16"),
    ("`epoch-N.pt`", "train.save_every_epochs=1"),
    ("`best-valid-loss.pt`", "train.keep_best=dev/loss"),
    ("`--average-period P` (there the mean over the run)", "train.ema=0.999"),
    ("`--filter-min-duration 5`", "data.min_s=5"),
    ("`--filter-max-duration 15`", "data.max_s=15"),
    ("`--train-stage 0`", "objective.stage=0"),
    ("`--visualize`", "`eval.samples` wavs and mel pictures of test answers"),
    ("`--oom-check true`", "train.check_memory=true"),
    ("`--model-name audio-lm`", "model.arch.name=valle"),
    ("`--decoder-dim 1024`", "model.arch.dim=1024"),
    ("`--nhead 16`", "model.arch.heads=16"),
    ("`--num-decoder-layers 12`", "model.arch.layers=12"),
    ("`--scale-factor 1.0`", "model.arch.nar_scale_factor=1.0"),
    ("`--norm-first true`", "model.arch.norm_first=true"),
    ("`--add-prenet false`", "model.arch.prenet=false"),
    ("`--prefix-mode 0`", "objective.nar_prefix=none"),
    ("`--prefix-mode 1`", "objective.nar_prefix=first"),
    ("`--prefix-mode 2`", "objective.nar_prefix=stretch"),
    ("`--prefix-mode 4`", "`tasks=[{name: zero_shot_tts, voice: other, voice_s: 3}]`, `objective.cut.mode=stored`"),
    ("`--share-embedding true`", "model.arch.share_embeddings=true"),
    ("`--prepend-bos true`", "model.arch.prepend_bos=true"),
    ("`--num-quantizers 4`", "codec.num_codebooks=4"),
    ("`--scaling-xformers`", "none; attention is PyTorch's"),
    ("`--manifest-dir DIR`", "`run.sh --cuts DIR` (`cuts_train`, `cuts_validation` or `cuts_dev`, `cuts_test`, `.jsonl.gz`)"),
    ("`--max-duration 150`", "data.batch_s=150"),
    ("`quadratic_duration` 10", "data.quadratic_s=10"),
    ("`--bucketing-sampler true --num-buckets 10`", "data.buckets=10"),
    ("`--concatenate-cuts`, `--duration-factor`, `--gap`", "none; a row is one recording"),
    ("`--on-the-fly-feats`, `--input-strategy`", "`run.sh --wavs DIR`: codes are made once, before training"),
    ("`--shuffle`, `--buffer-size`, `--shuffle-buffer-size`", "none; each epoch is a permutation of all examples"),
    ("`--drop-last`", "none; updates are full, what is left over comes in another epoch"),
    ("`--num-workers 8`", "data.prefetch=8"),
    ("`--return-cuts`, `--enable-spec-aug`", "none; they are for spectrograms"),
    ("`--dataset`, `--sampling-rate`", "none; the codec knows its rate, recordings of others are resampled"),
    ("inference: `--audio-prompts 'a.wav\\|b.wav'`", "`ttt continue a.wav b.wav`"),
    ("inference: `--checkpoint FILE`", "`--run DIR` (a run or one of its checkpoints)"),
    ("inference: `--output-dir DIR`, `--output-file NAME`", "`--out DIR`; files are named like their prompts"),
    ("inference: `--max-duration 10`", "`--seconds 10`"),
    ("inference: `--top-k -100` (off)", "eval.sampler.top_k=0"),
    ("VALL-E: `--text-tokens`, `--text-extractor`", "model.arch.text=true"),
    ("inference: `--temperature 1.0`", "eval.sampler.temperature=1.0"),
    ("inference: `--audio-tokenizer`, `--model-name`, `--decoder-dim`, ...", "none; the run's own files say them"),
)  # fmt: skip

# Typed -> the end of the one line that is said.
REFUSED = (
    ("another name of the architecture", "ttt config --config recipes/audiolm/conf/base.yaml model.arch.name=audio-lm",
     "no architecture named 'audio-lm'. Here it is called 'valle'."),
    ("`--top-k -100`", "ttt config --config recipes/audiolm/conf/base.yaml eval.sampler.top_k=-100", "must be >= 0, got -100"),
    ("seconds and codes at once",
     "ttt config --config recipes/audiolm/conf/base.yaml 'data={batch_s: 150, batch_tokens: 30000}'", "give one of the two"),
    ("a prompt shorter than a frame", "ttt continue prompts/a.wav --run exp/audio-lm --prompt-seconds 0.001", "less than a frame"),
    ("a hole, by a decoder that writes from left to right", "ttt continue prompts/a.wav --run exp/audio-lm --hole 0.5:1",
     "holes are filled by valle_masked"),
    ("a model of text, without text", "ttt continue prompts/a.wav --run exp/valle", "with --text"),
    ("text, for a model of none", "ttt continue prompts/a.wav --run exp/audio-lm --text words",
     "was trained without text; leave it out"),
    ("a task that speaks a text, on an architecture that drops it",
     "ttt train --config recipes/audiolm/conf/valle_tts.yaml model.arch.text=false run.dir=exp/deaf "
     "data.train=exp/valle/data/train.jsonl data.tokenizer=exp/valle/data/tokenizer",
     "which would be dropped; set model.arch.text=true"),
)  # fmt: skip


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def flag_rows() -> list[tuple[str, ...]]:
    """Every setting is read back, and compared with the recipe's own value."""
    base = to_plain(load_config([BASE]))
    rows = []
    for flag, here in FLAGS:
        key, is_setting, value = here.partition("=")
        if not is_setting or "`" in here:
            rows.append((flag, here, ""))
            continue
        read_back, own = to_plain(load_config([BASE], [here])), base
        for part in key.split("."):
            read_back, own = read_back[part], own[part]
        assert str(read_back).lower() in (value, f"{value}.0"), (here, read_back)
        rows.append((flag, f"`{here}`", "the recipe's" if read_back == own else f"the recipe has {str(own).lower()}"))
    return rows


def in_readme(name: str, made: str) -> None:
    """The README has the table under this name; ``TTT_WRITE_TABLES`` writes it."""
    begin, end = f"<!-- {name}: made by tests/recipes/test_audiolm_walk.py -->\n", "\n<!-- end -->"
    text = README.read_text()
    assert begin in text, f"{README}: no place for the table {name!r}"
    before, _, rest = text.partition(begin)
    old, _, after = rest.partition(end)
    if os.environ.get("TTT_WRITE_TABLES"):
        README.write_text(before + begin + made + end + after)
        return
    assert old == made, f"{README}: the table {name!r} is not what the walk found; TTT_WRITE_TABLES=1 pytest {__file__} writes it"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("audiolm"))


@pytest.mark.slow
def test_every_step_works(world):
    rows = []
    for step in STEPS:
        said = typed(step, world)
        rows.append((step.there, f"`{step.here}`", step.found(world, said)))
    in_readme("walk", table(("published program", "here", "result"), rows))
    refused = []
    for what, here, message in REFUSED:
        words = shlex.split(PLACES.sub(rf"{world}/\1/", here))
        words[0] = programs()["TTT"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **programs()})
        lines = [line for line in done.stderr.splitlines() if line.startswith("ttt ")]
        assert done.returncode == 2 and len(lines) == 1 and message in lines[0], (here, done.stderr)
        refused.append((what, f"`{here}`", message))
    in_readme("refused", table(("what", "typed", "the line says"), refused))


def test_every_flag_has_its_key():
    in_readme("flags", table(("flag", "here", "value"), flag_rows()))
