"""Every command of the published LLaDA programs as their user would type it here, on tiny data of the published forms.

The table in recipes/llada/README.md is made of `WALK`: ``python -m tests.recipes.test_llada_walk`` writes it again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "recipes/llada/README.md"
BEGIN, END = "<!-- walk: written by python -m tests.recipes.test_llada_walk -->", "<!-- /walk -->"
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_", "NNODES", "NODE_RANK", "TTT"))}
# What makes a recipe tiny; the table leaves it out.
TINY = (
    "train.steps=1 train.accumulate=1 train.autocast=none model.gradient_checkpointing=false data.row_tokens=64 "
    "data.batch_tokens=256 data.max_drop_share=1 eval.max_tokens=8 eval.sampler.gen_length=8"
)
TEXT = f"{TINY} data.num_codes=0 eval.sampler.initial_length=4 eval.sampler.num_iterations=2"
SPEECH = f"{TINY} data.num_codes=16 data.num_codebooks=7 eval.sampler.block_length=8 eval.sampler.diffusion_steps=8"


@dataclass(frozen=True)
class Step:
    """A command ``there`` and ``here`` (run by bash in the source tree; ``$W/`` is the user's folder).

    ``tiny``: settings that the table leaves out; ``result``: what comes of it; ``made``: files that must be there, or a function
    of (folder, output) that looks closer; ``slow``: left to ``pytest -m slow``.
    """

    there: str
    here: str
    result: str
    made: tuple[str, ...] | Callable[[Path, str], bool] = ()
    tiny: str = ""
    slow: bool = False


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answered(path: str, n: int) -> Callable[[Path, str], bool]:
    return lambda w, out: len([r for r in records(w / path) if {"prompt", "text", "codes"} <= r.keys()]) == n


RUN = "recipes/llada/run.sh"
WALK = (
    Step(
        "`train_llada.py create-configs`, `train_llada_tts.py --create-sample-config`",
        "ttt new recipe mine $W/mine --from llada",
        "`conf/pretrain.yaml`, `sft.yaml`, `tts.yaml`, `mixed.yaml` with comments, `run.sh`",
        ("mine/conf/sft.yaml", "mine/run.sh"),
    ),
    Step(
        "`convert_sharegpt_to_llada(IN, OUT)`",
        "ttt data convert --from sharegpt $W/sharegpt.jsonl $W/chats.jsonl",
        "examples",
        ("chats.jsonl",),
    ),
    Step(
        "`convert_alpaca_to_llada(IN, OUT)`",
        "ttt data convert --from alpaca $W/alpaca.json $W/alpaca.jsonl",
        "examples",
        ("alpaca.jsonl",),
        slow=True,
    ),
    Step(
        "`pretrain --config C --data_path D --output_dir O`",
        f"{RUN} --stage 1 --conf pretrain --model $W/model --train $W/text.jsonl --exp $W/pretrain",
        "`checkpoints/step-N/model`: a Hugging Face folder",
        ("pretrain/checkpoints/step-00000001/model/config.json",),
        TEXT,
    ),
    Step(
        "`prepare_pretraining_data(FILES)`",
        "ttt data convert --from text $W/book.txt $W/book.jsonl tokenizer=$W/pretrain/tokenizer",
        "records of `input_ids`",
        ("book.jsonl",),
        "max_tokens=32 min_tokens=4",
        slow=True,
    ),
    Step(
        "`sft --model_name_or_path M --data_path D`",
        f"{RUN} --stage 1 --conf sft --model $W/model --train $W/sharegpt.jsonl "
        "--exp $W/sft train.init_from=$W/pretrain",
        "the same, from the pre-trained weights",
        ("sft/checkpoints/step-00000001/COMPLETE",),
        TEXT,
    ),
    Step(
        "`sft` on records `input_ids`, `prompt_length`",
        f"{RUN} --stage 1 --stop-stage 2 --conf sft --model $W/model --train $W/ids.jsonl --exp $W/ids",
        "the same",
        ("ids/checkpoints/step-00000001/COMPLETE",),
        TEXT,
        slow=True,
    ),
    Step(
        "`pretrain ... --resume DIR`",
        f"{RUN} --stage 2 --stop-stage 2 --conf pretrain --model $W/model --train $W/text.jsonl "
        "--exp $W/pretrain train.steps=2",
        "goes on at the batch where it was",
        ("pretrain/checkpoints/step-00000002/COMPLETE",),
        TEXT.replace("train.steps=1 ", ""),
        slow=True,
    ),
    Step(
        "`inference --interactive`",
        "printf 'a cat\\nquit\\n' | ttt chat $W/sft",
        "an answer; `quit`, `exit`, `q` or Ctrl-D leave",
        lambda w, out: "model> " in out,
        slow=True,
    ),
    Step(
        "`inference --input_file F --output_file G`",
        f"{RUN} --stage 3 --stop-stage 3 --conf sft --exp $W/sft --test $W/prompts.txt",
        "`eval/prompts/prompts.generations.jsonl`: prompt, text, codes",
        answered("sft/eval/prompts/prompts.generations.jsonl", 2),
        TEXT,
    ),
    Step(
        "the same on the saved dataset that trained",
        f"{RUN} --stage 3 --stop-stage 3 --conf sft --exp $W/sft --test $W/saved",
        "the same",
        answered("sft/eval/saved/saved.generations.jsonl", 2),
        TEXT,
        slow=True,
    ),
    Step(
        "answers to chats, compared",
        f"{RUN} --stage 3 --conf sft --exp $W/sft --test $W/sharegpt.jsonl",
        "answers, `card.json`, a report",
        lambda w, out: bool(list((w / "sft/eval").glob("sharegpt/**/card.json"))),
        TEXT,
        slow=True,
    ),
    Step(
        "`LLaDAForMaskedLM.from_pretrained(O)(input_ids).logits`",
        "python -c \"import ttt; print(ttt.load('$W/sft', sound=False).logits([[5, 6, 7]]).shape)\"",
        "an array [1, 3, ids]",
        lambda w, out: "(1, 3, " in out,
        slow=True,
    ),
    Step(
        "`from_pretrained` elsewhere",
        "ttt model export $W/sft $W/exported",
        "`is_causal: false` in config.json, README.md that says how to load",
        lambda w, out: (
            json.loads((w / "exported/config.json").read_text())["is_causal"] is False
            and (w / "exported/README.md").is_file()
        ),
    ),
    Step(
        "`analyze_attention_patterns`",
        "ttt inspect attention $W/sft --examples $W/chats.jsonl --limit 1",
        "pictures, tables, `.npz` arrays",
        lambda w, out: bool(list((w / "sft/inspect/attention").glob("*.npz"))),
        slow=True,
    ),
    Step(
        "`analyze_masking_behavior`",
        "ttt generate --config $W/sft/config.yaml --trace eval.examples=[$W/prompts.txt] eval.out=$W/traced",
        "a trace of every step; `ttt replay TRACE` shows it",
        lambda w, out: bool(list((w / "traced").glob("*trace*"))),
        slow=True,
    ),
    Step(
        "`compare_sampling_methods`",
        "ttt inspect samplers $W/sft --examples $W/prompts.txt --limit 1",
        "a table of samplers: time, calls, distinct n-grams, likelihood",
        ("sft/inspect/samplers/samplers.json",),
        "--samplers own --draws 1 --likelihood-draws 0",
        slow=True,
    ),
    Step(
        "`calculate_perplexity`",
        "ttt likelihood --config $W/sft/config.yaml eval.examples=[$W/chats.jsonl] eval.out=$W/nll",
        "the bound on -log p (a causal shift means nothing here)",
        ("nll/likelihood.json",),
        "--draws 16",
        slow=True,
    ),
    Step(
        "`train_llada_tts.py --config C`",
        f"{RUN} --stage 1 --conf tts --model $W/model --train $W/tts.jsonl --exp $W/tts",
        "a run that learned codes",
        ("tts/checkpoints/step-00000001/COMPLETE",),
        SPEECH,
        slow=True,
    ),
    Step(
        "the same with `text_QA_dataset` and `ratio`",
        f"{RUN} --stage 1 --conf mixed --model $W/model --train $W/tts.jsonl "
        "--exp $W/mixed data.text=$W/sharegpt.jsonl data.ratio=0.5",
        "losses `text` and `audio` apart",
        lambda w, out: "loss/audio" in (w / "mixed/metrics.jsonl").read_text(),
        SPEECH,
        slow=True,
    ),
    Step(
        "`llada_inference.py --text T --output O.wav`",
        f"{RUN} --stage 3 --stop-stage 3 --conf tts --exp $W/tts --test $W/say.jsonl",
        "codes, and with `codec=` their sound (`ttt generate --wav`)",
        answered("tts/eval/say/say.generations.jsonl", 1),
        SPEECH,
        slow=True,
    ),
    Step(
        "official weights (`GSAI-ML/LLaDA-8B-Base`)",
        "ttt model import $W/LLaDA-8B-Base $W/llada",
        "a plain Llama folder; none of its code is run",
        ("llada/config.json", "llada/README.md"),
    ),
    Step(
        "official `chat.py`, `generate.py`",
        "printf 'a cat\\n' | ttt chat $W/llada --raw --config recipes/llada/conf/eval_base.yaml",
        "text that goes on; without `--raw` a chat in the published template",
        lambda w, out: "model> " in out,
        "eval.max_tokens=8 eval.sampler.gen_length=8 eval.sampler.block_length=8 eval.sampler.diffusion_steps=8",
    ),
    Step(
        "SFT of official weights",
        f"{RUN} --stage 1 --conf sft --model $W/llada --train $W/sharegpt.jsonl --exp $W/llada_sft data.num_codes=0 "
        "data.form=headers data.mask_token='<|mdm_mask|>'",
        "the same run folder as any other",
        ("llada_sft/checkpoints/step-00000001/COMPLETE",),
        TEXT,
        slow=True,
    ),
    Step(
        "official `eval_llada.py --tasks T`",
        "ttt eval lm-eval --model $W/llada --config recipes/llada/conf/eval_base.yaml --tasks T",
        "a card; the lines of the tables are in `conf/eval_*.yaml`",
    ),
    Step(
        "Dream, dLLM's `right_shift_logits`",
        "ttt model import $W/Dream $W/dream",
        "a plain Qwen2 folder, read with `objective.logit_alignment=next` (`conf/eval_dream.yaml`)",
        ("dream/config.json",),
        slow=True,
    ),
)


def table() -> str:
    """The walk for readers."""

    def cell(text: str) -> str:
        return text.replace("$W/", "").replace("|", "\\|")

    rows = [f"| {cell(s.there)} | `{cell(s.here).replace(' --stage 1 ', ' ')}` | {cell(s.result)} |" for s in WALK]
    return "\n".join([BEGIN, "", "| there | here | result |", "|---|---|---|", *rows, "", END])


def written(readme: str) -> str:
    """The README with the table in its place."""
    return readme[: readme.index(BEGIN)] + table() + readme[readme.index(END) + len(END) :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder: a small backbone, published weights in small, data of the published forms."""
    pytest.importorskip("pyarrow")
    sys.path.insert(0, str(ROOT / "tests/unit/model"))
    from local_backbones import make_backbone

    from tests.published_folders import write_dream, write_llada
    from tests.saved_dataset import save_to_disk
    from ttt.text.tokenizer import TextTokenizer

    w = tmp_path_factory.mktemp("walk")
    make_backbone(w / "model", "llama")
    write_llada(w / "LLaDA-8B-Base")
    write_dream(w / "Dream")
    words = ["a cat sat on the mat", "one two three"]
    turns = [[{"from": "human", "value": t}, {"from": "gpt", "value": "a cat"}] for t in words]
    plain = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "a cat"}]} for t in words]
    save_to_disk(w / "saved", plain)
    lines = {
        "sharegpt.jsonl": [{"conversations": t} for t in turns], "text.jsonl": [{"text": t} for t in words * 4],
        "ids.jsonl": [{"input_ids": [40, 41, 42, 43], "prompt_length": 2}] * 4, "say.jsonl": [{"prompt": "a cat", "task": "tts"}],
    }  # fmt: skip
    v = TextTokenizer.extended(w / "model", 16, 7, "llada_tts").vocab
    codes = [v.code_start + q * 16 + (f + q) % 16 for f in range(3) for q in range(7)]
    spoken = [v.im_start_id, 40, 41, v.im_start_id + 1, v.im_end_id - 1, v.soa_id, *codes, v.eoa_id, v.im_end_id]
    lines["tts.jsonl"] = [
        {"input_ids": spoken, "attention_mask": [1] * len(spoken), "prompt_lengths": 6, "data_type": "tts"}
    ] * 4
    for name, rows in lines.items():
        (w / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (w / "alpaca.json").write_text(json.dumps([{"instruction": t, "input": "", "output": "a cat"} for t in words]))
    (w / "prompts.txt").write_text("\n".join(words) + "\n")
    (w / "book.txt").write_text(" ".join(words * 20))
    return w


def failure(folder: Path, step: Step) -> str:
    """Run a step; what is wrong with it, or nothing."""
    from tests.warm_python import commands, programs

    env = {**CLEAN, **programs(), "W": str(folder), "PATH": f"{commands()}:{os.environ['PATH']}"}
    call = f"set -o pipefail; {step.here} {step.tiny}"
    done = subprocess.run(["bash", "-c", call], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    output = done.stdout + done.stderr
    if done.returncode:
        return f"{step.here}: exit code {done.returncode}\n{output[-2000:]}"
    if callable(step.made):
        return "" if step.made(folder, output) else f"{step.here}: not {step.result}\n{output[-2000:]}"
    missing = [name for name in step.made if not (folder / name).exists()]
    return f"{step.here}: no {missing}\n{output[-2000:]}" if missing else ""


def walk(folder: Path, steps: list[Step]) -> None:
    failures = [found for step in steps if step.made and (found := failure(folder, step))]
    assert not failures, "\n\n".join(failures)


def test_the_commands_of_the_published_programs(folder):
    walk(folder, [step for step in WALK if not step.slow])


@pytest.mark.slow
def test_the_other_commands(folder):
    before = [
        s for s in WALK if not s.slow and isinstance(s.made, tuple) and s.made and not (folder / s.made[0]).exists()
    ]
    walk(folder, [s for s in WALK if s.slow or s in before])


def test_the_table_of_the_readme_is_the_walk():
    readme = README.read_text(encoding="utf-8")
    assert readme == written(readme), "run: python -m tests.recipes.test_llada_walk"


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
