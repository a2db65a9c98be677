"""The README of the published SlamOmni program, item by item, as its user would type it here, on tiny data of its form.

Its tables in recipes/slamomni/README.md are checked by this file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.recipes.walks import ROOT, Step, in_readme, table, typed
from ttt.audio.wav import read, write
from ttt.config.load import load_config, to_plain
from ttt.types import Waveform

sys.path[:0] = [str(ROOT / "tests/unit/model"), str(ROOT / "tests/unit/audio/codecs")]
README = ROOT / "recipes/slamomni/README.md"
TEST = "tests/recipes/test_slamomni_walk.py"
PLACES = ("exp", "data", "models", "program", "generated", "sft_data", "outputs")
RUN = "./recipes/slamomni/run.sh"
CONF = "recipes/slamomni/conf/v1.1.yaml"
SMALL = (
    "data.row_tokens=128", "data.batch_tokens=256", "train.accumulate=1", "run.threads=1", "eval.max_tokens=40",
)  # fmt: skip
VOICE = "codec.name=cosyvoice codec.path=models/CosyVoice-300M-SFT codec.prompt=data/audio1.wav codec.code=program/"
HERE = "--model models/qwen3 --data 'data/train-*.parquet' --exp exp/slamomni"


def make_world(folder: Path) -> Path:
    """SLAM-Omni's parquet, SLAM-LLM's JSONL, MMLU-Redux 2.0, a text model, and the shape of CosyVoice's program."""
    import pyarrow as pa
    import pyarrow.parquet
    from local_backbones import make_backbone
    from test_cosyvoice import STUB, V1

    rng = np.random.default_rng(0)
    for name in PLACES:
        (folder / name).mkdir()

    def row(n: int) -> dict:
        heard = {"array": [0.1] * 8, "path": f"{n}.wav", "sampling_rate": 16000}
        return {"split_name": "qa", "index": str(n), "round": "0", "question": f"say {n}", "question_audio": heard,
                "answer": f"it is {n}", "answer_snac": "# 1 2 3",
                "answer_cosyvoice_speech_token": rng.integers(0, 4096, 30).tolist()}  # fmt: skip

    rows = [row(n) for n in range(40)]
    rows[7]["answer_cosyvoice_speech_token"] = []
    for shard in range(2):
        part = pa.Table.from_pylist(rows[20 * shard : 20 * shard + 20])
        pyarrow.parquet.write_table(part, folder / f"data/train-{shard:05d}-of-00853.parquet")
    said = ("<USER>: hi", "USER: hi ASSISTANT: yes <USER>: and then")
    lines = [{"split_name": "identity", "index": 2, "round": n, "target_token": [5, n], "source_text": asked,
              "source_wav": "/x.wav", "target_text": "yes"} for n, asked in enumerate(said, 1)]  # fmt: skip
    (folder / "data/slam-llm.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    subject = folder / "data/mmlu-redux-2.0/high_school_mathematics"
    subject.mkdir(parents=True)
    asked = pa.Table.from_pylist([
        {"question": f"{n} + 1", "choices": [str(n), str(n + 1), "9", "no"], "answer": 1, "error_type": "ok", "source": None,
         "correct_answer": None, "potential_reason": None} for n in range(12)
    ])  # fmt: skip
    with pa.OSFile(str(subject / "data-00000-of-00001.arrow"), "wb") as out, pa.ipc.new_stream(out, asked.schema) as stream:
        stream.write_table(asked)
    (subject / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (subject / "dataset_info.json").write_text("{}")
    (folder / "data/quiz.jsonl").write_text('{"question": "one and one", "options": ["two", "six"], "gold": 0}\n')
    (folder / "data/quiz.yaml").write_text(
        "task: quiz\ndataset_path: json\ndataset_kwargs: {data_files: {test: quiz.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}:'\ndoc_to_choice: '{{options}}'\ndoc_to_target: gold\n"
    )
    make_backbone(folder / "models/qwen3", "qwen3")
    (folder / "models/CosyVoice-300M-SFT").mkdir()
    (folder / "models/CosyVoice-300M-SFT/cosyvoice.yaml").touch()
    package = folder / "program/cosyvoice/cli"
    package.mkdir(parents=True)
    for place in (package.parent, package):
        (place / "__init__.py").touch()
    (package / "cosyvoice.py").write_text(STUB.format(**V1))
    write(folder / "data/audio1.wav", Waveform((0.3 * np.sin(np.arange(4 * 24000) / 20)).astype(np.float32), 24000))
    tokens = {"speech_tokens": [7, 4095] * 219, "num_tokens": 438, "vocab_size": 8192, "frame_rate_hz": 25,
              "duration_seconds": 17.52}  # fmt: skip
    (folder / "generated/test_response_tokens.json").write_text(json.dumps(tokens))
    (folder / "generated/list.json").write_text("[7, 4095]")
    (folder / "generated/ids.json").write_text("[7, 151673]")
    (folder / "generated/other.json").write_text('{"speech_tokens": [7], "vocab_size": 6561}')
    return folder


# Flag of the published programs -> settings here, or words.
FLAGS = (
    ("conversion: `--input_file /data/*.parquet`, `--output_file F`", "`run.sh --data '/data/*.parquet' --exp DIR`"),
    ("conversion: `--num_samples 500`", "`run.sh --limit 500`; `ttt data convert --limit 500`, also `--n-samples`"),
    ("conversion: `--tokenizer Qwen/Qwen3-0.6B`", "`run.sh --model DIR`: any tokenizer with ChatML's tokens"),
    ("split: `--input`, `--train_output`, `--eval_output`", "`ttt data split INPUT --train FILE --eval FILE`"),
    ("split: `--eval_ratio 0.15`, `--seed 42`", "`run.sh --eval-ratio 0.15`; `ttt data split --eval-ratio 0.15 --seed 42`"),
    ("lengths: number of lines", "`ttt data stats --limit N`"),
    ("`model=text_then_speech`", "`run.sh --conf v1`, `v1.1`, `v1.1_frozen`"),
    ("`data.train_path=F`, `data.val_path=F`", "`data.train=F`, `data.dev=F`; run.sh names its own"),
    ("`data.max_length=1024`", "data.row_tokens=1024"),
    ("`data.packing`", "data.pack=true"),
    ("`training_args.output_dir=DIR`", "`run.sh --exp DIR`; `run.dir=DIR`"),
    ("`cont_training=true`", "the same command again"),
    ("`training_args.num_train_epochs=1`", "train.epochs=1"),
    ("`training_args.learning_rate=1e-4`", "train.lr=0.0001"),
    ("`training_args.per_device_train_batch_size=16`", "data.batch_samples=16"),
    ("`training_args.gradient_accumulation_steps=4`", "train.accumulate=4"),
    ("`training_args.warmup_ratio=0.03`", "train.warmup_epochs=0.03"),
    ("`training_args.warmup_steps=100`", "train.warmup_steps=100"),
    ("`training_args.lr_scheduler_type=cosine`", "train.schedule.name=cosine"),
    ("`training_args.max_grad_norm=0.5`", "train.clip_norm=0.5"),
    ("`training_args.bf16=true`", "train.autocast=bfloat16"),
    ("`training_args.logging_steps=10`", "train.log_every_steps=10"),
    ("`training_args.save_strategy=steps`, `+training_args.save_steps=1000`", "train.save_every_steps=1000"),
    ("`training_args.eval_strategy=steps`, `training_args.eval_steps=1000`", "train.eval_every_steps=1000"),
    ("`training_args.save_strategy=epoch`", "train.save_every_epochs=1"),
    ("`training_args.save_total_limit=2`", "train.keep_checkpoints=2"),
    ("`training_args.dataloader_num_workers=4`", "data.prefetch=4"),
    ("`training_args.group_by_length=true`",
     "`data.pack=false`: one example a row, rows of like length together; `data.buckets=10`"),
    ("`training_args.torch_compile=true`", "model.compile=true"),
    ("`training_args.ddp_find_unused_parameters`", "none; every parameter is used"),
    ("`run_time=D-HH:MM:SS`", "`train.max_time=D-HH:MM:SS`"),
    ("`train_max_tokens=2000000000`", "train.max_tokens=2000000000"),
    ("`freeze_text_embeddings=true`", "model.freeze=text_rows"),
    ("`model.base_model_name=Qwen/Qwen3-0.6B`", "`run.sh --model DIR`, a folder; nothing is downloaded"),
    ("`model.twist_init=false`", "`model.preset=NAME` in place of `model.path`"),
    ("`model.vocab_size=-1`", "none; `vocab.json` says it"),
    ("`model.torch_dtype=bfloat16`", "model.dtype=bfloat16"),
    ("`model.trust_remote_code`, `pad_token_id`, `bos_token_id`, `eos_token_id`", "none; the tokenizer says them"),
    ("`logger.report_to=wandb`, `+logger.project=NAME`", "`metrics.jsonl`; `train.tensorboard=true`"),
    ("inference: `model_path`, `tokenizer`, `speech_offset`", "`ttt chat EXP`; the checkpoint knows its ids"),
    ("inference: `max_new_tokens=1500`", "eval.max_tokens=1500"),
    ("inference: `temperature=0.7` (text)", "eval.temperature=0.7"),
    ("inference: `temperature=0.7` (speech)", "eval.sampler.temperature=0.7"),
    ("inference: `top_p=0.9` (text)", "eval.top_p=0.9"),
    ("inference: `top_p=0.9` (speech)", "eval.sampler.top_p=0.9"),
    ("inference: `do_sample=false`", "`eval.temperature=0 eval.sampler.temperature=0`"),
    ("inference: `device=cuda`", "run.device=cuda"),
    ("sound: `--tokens`, `--speech-tokens`, `--output`", "`ttt vocode --tokens`, `--speech-tokens`, `--out`, `--output`"),
    ("sound: `--prompt-audio F`, `--model-dir D`", "`codec.prompt=F codec.path=D` with `codec.name=cosyvoice`"),
    ("sound: `--speed 1.0`", "`codec.speed=1.0`"),
    ("MMLU-Redux: `--model_path M`, `--output_dir D`", "`ttt eval mmlu-redux FOLDER --model M --out D`"),
    ("MMLU-Redux: `--config SUBJECT`, `--quick`", "`--subject SUBJECT ...` (default: all), `--limit 10`"),
    ("MMLU-Redux: `--bf16`, `--cpu`", "`model.dtype=bfloat16`, `run.device=cpu`"),
    ("MMLU-Redux: `--model_name`, `--tokenizer_name`, `--think`", "none; the folder's name, its tokenizer, thinking is off"),
    ("`lm_eval --model unitlm --model_args pretrained=M`", "`python -m ttt.textbench --model unitlm --model_args pretrained=M`"),
    ("`lm_eval` with `--tasks`, `--limit`, `--batch_size`, `--output_path`, `--log_samples`",
     "the same; it is the harness's program"),
)  # fmt: skip

# What is typed -> what the one line says.
REFUSED = (
    ("the bad row, without `--skip-bad`", "ttt data convert --from slam_omni 'data/train-*.parquet' exp/bad.jsonl",
     "the answer has no speech units; drop the row"),
    ("a token id in place of a code", "ttt vocode --tokens generated/ids.json --output generated/no.wav " + VOICE,
     "codes go from 0 to 4095; subtract the offset"),
    ("tokens of another codec", "ttt vocode --tokens generated/other.json --output generated/no.wav " + VOICE,
     "name the codec the tokens were made for"),
    ("an objective that masks, in a form without a mask token",
     "ttt train --config exp/slamomni/config.yaml run.dir=exp/no objective=nar", "mask token"),
    ("a subject that is not there", "ttt eval mmlu-redux data/mmlu-redux-2.0 --model exp/slamomni --subject marketing",
     "has no 'marketing'"),
    ("rows shorter than the shortest example", "ttt train --config exp/slamomni/config.yaml run.dir=exp/no data.row_tokens=16",
     "row_tokens"),
)  # fmt: skip


def has(*parts: str, result: str) -> Callable[[Path, str], str]:
    """The step printed all of these."""

    def found(world: Path, said: str) -> str:
        assert all(part in said for part in parts), said
        return result

    return found


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def split(world: Path, said: str) -> str:
    counts = [len((world / f"exp/data/{name}.jsonl").read_text().splitlines()) for name in ("all", "train_v1", "eval_v1")]
    assert counts == [39, 34, 5]
    return "the same lines as the published script: int(n · ratio) of them for evaluation, in the order of the source"


def tokenizer(world: Path, said: str) -> str:
    vocab = json.loads((world / "exp/tokenizer/vocab.json").read_text())
    assert (vocab["speech_vocab"], len(vocab["modality_tokens"]), vocab["frame_rate"]) == (4096, 4, 50)
    assert vocab["speech_offset"] == vocab["text_vocab"] + 4 and vocab["total"] == vocab["speech_offset"] + 4096
    return "`vocab.json`: offset and size of the whole codebook, whatever the samples hold"


def trained(name: str, result: str, steps: int = 1) -> Callable[[Path, str], str]:
    def found(world: Path, said: str) -> str:
        rows = metrics(world / "exp" / name)
        assert rows[-1]["step"] >= steps and any("dev/loss" in row for row in rows), rows[-1]
        assert list((world / "exp" / name / "checkpoints").iterdir())
        return result

    return found


def grouped(world: Path, said: str) -> str:
    vocab = json.loads((world / "exp/grouped/tokenizer/vocab.json").read_text())
    assert vocab["speech_vocab"] > 3 * 4096
    return trained("grouped", "three codes at a position; a third of the positions")(world, said)


def initialised(world: Path, said: str) -> str:
    assert (world / "exp/init/config.json").is_file() and (world / "exp/init/vocab.json").is_file()
    return "a plain folder, for an evaluation before training"


def answered(world: Path, said: str) -> str:
    record = json.loads((world / "generated/answers/turn-001.tokens.json").read_text())
    assert record["num_tokens"] == len(record["speech_tokens"]) > 0 and max(record["speech_tokens"]) < 4096
    assert (record["vocab_size"], record["frame_rate_hz"]) == (4096, 50)
    return "`turn-001.json`, `turn-001.tokens.json`; `quit`, `exit` or `q` ends"


def spoken(name: str, seconds: float, result: str) -> Callable[[Path, str], str]:
    def found(world: Path, said: str) -> str:
        wave = read(world / "generated" / name)
        assert wave.rate_hz == 22050 and wave.duration_s == pytest.approx(seconds, abs=0.02)
        return result

    return found


def redux(world: Path, said: str) -> str:
    lines = (world / "outputs/mmlu_redux_eval").glob("predictions_*_high_school_mathematics.csv")
    assert [len(file.read_text().splitlines()) for file in lines] == [11]
    return "`predictions_MODEL_SUBJECT.csv`, `card.json`; accuracy with an interval"


def harness(world: Path, said: str) -> str:
    return "the harness's table; answers by letters, log-likelihoods over text ids"


STEPS = (
    Step("`inspect_data.py`: columns, types, first rows", "ttt data show 'data/train-*.parquet' --limit 3",
         has("20 rows in 1 file(s), 8 columns", "answer_cosyvoice_speech_token: list<", "row train-00000-of-00853.parquet[2]",
             result="number of rows, columns, rows")),
    Step("`inspect_data.py`: ranges of tokens", "ttt data stats 'data/train-*.parquet'",
         has("answer_cosyvoice_speech_token  1 empty, items 0 to 30", "values ", result="of every column: sizes, ranges, gaps")),
    Step("", "ttt data check 'data/train-*.parquet' --from slam_omni",
         has("40 rows, 39 usable; 1 skipped: no codes", result="rows that cannot be converted, by reason; exit code 1"), code=1),
    Step("`convert_to_sft.py --input_file F --output_file F --num_samples 500`",
         "ttt data convert --from slam_omni 'data/train-*.parquet' exp/data/all.jsonl --limit 500 --skip-bad",
         has("40 rows, 39 written", "1 skipped: no codes", result="examples; 1 row without tokens left out and counted")),
    Step("SLAM-LLM's JSONL of several rounds", "ttt data convert --from slam_omni data/slam-llm.jsonl exp/data/rounds.jsonl",
         has("1 rows, 1 written", result="two rows of one dialogue: one conversation")),
    Step("`convert_to_sft.py --tokenizer Qwen/Qwen3-0.6B`",
         f"ttt tokenizer --config {CONF} model.path=models/qwen3 data.tokenizer=exp/tokenizer", tokenizer),
    Step("`split_sft_data.py --input --train_output --eval_output --eval_ratio 0.15 --seed 42`",
         "ttt data split exp/data/all.jsonl --train exp/data/train_v1.jsonl --eval exp/data/eval_v1.jsonl --eval-ratio 0.15 "
         "--seed 42", split),
    Step("`plot_sequence_length.py`",
         "ttt data stats exp/data/all.jsonl --tokenizer exp/tokenizer --context 1024 2048 --png exp/lengths.png",
         has("median", "p99", "2048", result="mean, median, percentiles, what each context cuts; a histogram")),
    Step("`inspect_sample.py`", "ttt data show exp/data/train_v1.jsonl --tokenizer exp/tokenizer",
         has("learned", "<text>", "border at", result="the sample as text; ids and labels around each border")),
    Step("debug training: `train_sft.py`, 500 samples, `num_train_epochs=1`, `+training_args.save_steps=100`",
         f"{RUN} {HERE} --limit 500 --stage 1 --stop-stage 3 train.epochs=1 train.save_every_steps=100 train.log_every_steps=1",
         trained("slamomni", "conversion, split, tokenizer, lengths, training: `checkpoints/`, `metrics.jsonl`"), SMALL),
    Step("the same in v1's form", f"{RUN} {HERE.replace('exp/slamomni', 'exp/v1')} --conf v1 --stage 1 --stop-stage 3",
         trained("v1", "no tags; offset 151,669 with Qwen3's tokenizer"), SMALL),
    Step("v1.1: `freeze_text_embeddings=true`",
         f"{RUN} {HERE.replace('exp/slamomni', 'exp/frozen')} --conf v1.1_frozen --stage 1 --stop-stage 3",
         trained("frozen", "rows of text tokens do not change"), SMALL),
    Step("SLAM-Omni's groups of three codes",
         f"{RUN} {HERE.replace('exp/slamomni', 'exp/grouped')} --stage 1 --stop-stage 3 "
         "'data.pattern={name: parallel, frames: 3}'",
         grouped, SMALL),
    Step("the model right after initialisation (`save_pretrained`, `exit()`)",
         f"ttt model init {CONF} exp/init model.path=models/qwen3 data.tokenizer=exp/tokenizer", initialised),
    Step("`group_by_length` (there: \"will hang\")",
         "ttt train --config exp/slamomni/config.yaml run.dir=exp/buckets data.pack=false",
         trained("buckets", "rows of similar length share a batch")),
    Step("`test_inference.py`, `inference.py`", "ttt chat exp/slamomni --out generated/answers codec=null", answered,
         lines="why\nquit\n"),
    Step("`token_to_wav.py --speech-tokens F --prompt-audio F --output F --model-dir D`",
         f"ttt vocode --speech-tokens generated/test_response_tokens.json --output generated/said.wav {VOICE}",
         spoken("said.wav", 8.76, "438 tokens: 8.76 s at 22,050 Hz; the header's 8192 and 25 Hz are not believed")),
    Step("the bare list `[7, 4095]`, `--speed 0.5`",
         f"ttt vocode --tokens generated/list.json --output generated/slow.wav {VOICE} codec.speed=0.5",
         spoken("slow.wav", 0.08, "the list is read; twice as long")),
    Step("`eval_mmlu_redux_zeroshot.py --model_path M --config high_school_mathematics --output_dir D --bf16 --quick`",
         "ttt eval mmlu-redux data/mmlu-redux-2.0 --model exp/slamomni --subject high_school_mathematics --template qwen3 "
         "--limit 10 --out outputs/mmlu_redux_eval model.dtype=bfloat16", redux),
    Step("`lm_eval --model hf --model_args pretrained=Qwen/Qwen3-0.6B --tasks mmlu`",
         "python -m ttt.textbench --model ttt --model_args pretrained=models/qwen3 --tasks data/quiz.yaml", harness),
    Step("`lm_eval --model unitlm --model_args pretrained=M --tasks mmlu_marketing --batch_size 8 --limit 0.01`",
         "python -m ttt.textbench --model unitlm --model_args pretrained=exp/slamomni --tasks data/quiz.yaml --batch_size 8 "
         "--output_path outputs/results --log_samples", harness),
)  # fmt: skip


def flag_rows() -> list[tuple[str, ...]]:
    """Every setting is read back, and compared with the recipe's own value."""
    given = ["run.dir=x", "data.train=y", "data.tokenizer=z"]
    base = to_plain(load_config([ROOT / CONF], given))
    rows = []
    for flag, here in FLAGS:
        key, is_setting, value = here.partition("=")
        if not is_setting or "`" in here:
            rows.append((flag, here, ""))
            continue
        set_to, own = to_plain(load_config([ROOT / CONF], [*given, here])), base
        for part in key.split("."):
            set_to, own = set_to[part], own[part]
        assert str(set_to).lower() in (value, f"{value}.0"), (here, set_to)
        rows.append((flag, f"`{here}`", "the recipe's" if set_to == own else f"the recipe has {str(own).lower()}"))
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    pytest.importorskip("pyarrow")
    return make_world(tmp_path_factory.mktemp("slamomni"))


@pytest.mark.slow
def test_every_step_works(world):
    rows = []
    for step in STEPS:
        if "ttt.textbench" not in step.here or find_spec("lm_eval"):
            result = step.found(world, typed(step, world, PLACES))
        else:
            result = step.found(world, "")
        rows.append((step.there, f"`{step.here}`", result))
    in_readme(README, "walk", table(("published program", "here", "result"), rows), TEST)
    refused = []
    for what, here, message in REFUSED:
        said = typed(Step(what, here, has(message, result=""), code=2), world, PLACES)
        lines = [line for line in said.splitlines() if line.startswith("ttt ")]
        assert len(lines) == 1 and message in lines[0], said
        refused.append((what, f"`{here}`", message))
    in_readme(README, "refused", table(("what", "typed", "the line says"), refused), TEST)


def test_every_flag_has_its_key():
    in_readme(README, "flags", table(("flag", "here", "value"), flag_rows()), TEST)
