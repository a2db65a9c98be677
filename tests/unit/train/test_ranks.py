"""Real processes with gloo: every engine trains alike, and ends well when a rank dies, is told to stop or fails.

One test a scenario: what its worlds did is judged together, so that a parallel test run starts none of them twice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import TinyLM, lines, trainer

from ttt.train.checkpoint import verify

pytest.importorskip("deepspeed")
HERE = Path(__file__).parent
ENGINES = ("local", "zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def scenario() -> Iterator[Callable[..., dict]]:
    """``scenario(name, folder, *arguments)`` asks one process, which has imported everything, for one scenario."""
    path = os.pathsep.join([str(HERE.parents[2]), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(HERE / "rank_worlds.py")], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None

        def ask(name: str, folder: Path, *arguments: object) -> dict:
            process.stdin.write(json.dumps([name, str(folder), *arguments]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, f"scenario {name} failed"
            return json.loads(answer)

        yield ask
        process.stdin.close()


def ended(run: dict, *status: int) -> str:
    """Check how the ranks ended; everything they wrote."""
    assert run["status"] == list(status), "\n".join(run["text"])
    return "\n".join(run["text"])


def same(one: list[dict], other: list[dict], rel: float) -> None:
    assert [r["step"] for r in one] == [r["step"] for r in other] and len(one) > 1
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=rel, abs=1e-7)


def test_every_engine_equals_one_process_and_goes_on_with_any_other(scenario, tmp_path):
    runs = scenario("engines", tmp_path)
    one = runs["one"]["lines"]
    ended(runs["one"], 0)
    assert [r["step"] for r in one] == [1, 2, 3, 4, 5, 6]
    assert min(r["train/grad_norm"] for r in one) > 0.1  # clipping had something to do
    for engine in ENGINES:
        ended(runs[engine], 0, 0)
        same(runs[engine]["lines"], one, 2e-5)
    checkpoint = tmp_path / "zero2/checkpoints/step-00000006"
    verify(checkpoint)
    listed = json.loads((checkpoint / "COMPLETE").read_text())["files"]
    assert {f"engine/optimizer-0000{r}-of-00002.safetensors" for r in (0, 1)} < set(listed)
    # A checkpoint belongs to no engine and no number of ranks.
    ended(runs["zero3 to local on one"], 0)
    ended(runs["local on one to zero2"], 0, 0)
    ended(runs["zero2 to zero2 on one"], 0)
    for name in ("zero3 to local on one", "local on one to zero2", "zero2 to zero2 on one"):
        same(runs[name]["lines"], one, 2e-5)


def test_failures_end_every_rank_with_one_message(scenario, tmp_path):
    runs = scenario("failures", tmp_path)
    for engine in ("local", "zero2"):  # a rank is killed
        run = runs[f"lost {engine}"]
        text = ended(run, 2, -9)
        assert "ttt train: step 5: another process of this run is gone" in text
        assert "the same command goes on from step-00000003" in text
        assert max(run["seconds"]) < 30
        again, whole = runs[f"end of lost {engine}"], runs[f"end of whole {engine}"]
        ended(again, 0, 0)
        ended(whole, 0, 0)
        assert [r["step"] for r in whole["lines"]] == [1, 2, 3, 4, 5, 6]
        assert again["lines"] == whole["lines"]  # bit for bit
    text = ended(runs["second"], 2, 2)
    assert text.count("is running in this folder; wait for it, or choose another run.dir") == 1
    text = ended(runs["signal"], 0, 0)
    assert text.count("SIGTERM: saving after this update") == 1
    assert runs["signal"]["kept"] == ["step-00000003", "step-00000005"]
    text = ended(runs["nan"], 2, 2)
    assert "step 4: loss term 'ar' is not finite in examples 55-0, 55-1" in text
    assert runs["nan"]["files"] == ["rank-0.json", "rank-0.safetensors", "rank-1.json", "rank-1.safetensors"]
    text = ended(runs["disk"], 2, 2)
    assert text.count("the disk is full: a checkpoint needs about") == 1 and "goes on from step-00000003" in text
    assert runs["disk"]["files"] == ["step-00000003"]
    for engine in ("zero2", "zero3"):
        text = ended(runs[f"gradient {engine}"], 2)
        assert "step 1: the gradient's norm is inf (the losses are finite)" in text
    text = ended(runs["unused"], 2)
    assert "2 trainable parameters got no gradient in a micro-batch (first 'spare.weight')" in text


def test_a_language_model_under_zero3(scenario, tmp_path):
    """Chunked logits in other numbers on each rank, decoding at validation, bfloat16 with float32 masters, a plain folder."""
    from transformers import AutoModelForCausalLM

    runs = scenario("language_model", tmp_path)
    ended(runs["one"], 0)
    ended(runs["zero3"], 0, 0)
    same(runs["zero3"]["lines"], runs["one"]["lines"], 1e-4)
    loaded = [AutoModelForCausalLM.from_pretrained(runs[k]) for k in ("folder", "one folder")]
    for (name, one), (_, other) in zip(loaded[0].named_parameters(), loaded[1].named_parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3, msg=name)
    ended(runs["zero3-bf16"], 0, 0)
    for a, b in zip(runs["zero3-bf16"]["lines"], runs["one-bf16"]["lines"], strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=0.02)
    ended(runs["again"], 0, 0)
    assert runs["again"]["lines"] == runs["zero3-bf16"]["lines"]  # bit for bit


def test_frozen_text_rows_stay_bit_equal_under_every_engine(scenario, tmp_path):
    from ttt.check.world import tokenizer
    from ttt.model.frozen import first_added

    runs = scenario("frozen", tmp_path)
    before = load_file(tmp_path / "base/model.safetensors")
    first = first_added(tokenizer())
    for name in ("one", "local", "zero2", "zero3", "again"):
        ended(runs[name], *[0] * (1 if name == "one" else 2))
        same(runs[name]["lines"], runs["one"]["lines"], 1e-4)
        after = load_file(tmp_path / name / "checkpoints/step-00000006/model/model.safetensors")
        assert after.keys() == before.keys()  # a plain folder
        for key, value in after.items():
            if key == "model.embed_tokens.weight":
                assert torch.equal(value[:first], before[key][:first]), name
                assert bool((value[first:] != before[key][first:]).any(1).all()), name
            else:
                assert not torch.equal(value, before[key]), (name, key)
    assert runs["again"]["lines"] == runs["zero3"]["lines"]  # bit for bit


@pytest.mark.slow
def test_offloading_published_options_adapters_and_a_silent_rank(scenario, tmp_path):
    runs = scenario("variants", tmp_path)
    text = ended(runs["silent"], 2, -9)  # -9: the silent one, by the test, when the other had long ended
    assert "another process of this run is gone or does not answer" in text
    for name in ("options", "offload 2", "offload 3"):
        ended(runs[name], 0, 0)
        same(runs[name]["lines"], runs["one"]["lines"], 2e-5)
    for name in ("lora zero2", "lora zero3"):
        ended(runs[name], 0, 0)
        same(runs[name]["lines"], runs["lora"]["lines"], 1e-4)
    for name in ("offload 2", "offload 3", "lora zero3"):
        ended(runs[f"{name} again"], 0, 0)
        assert runs[f"{name} again"]["lines"] == runs[name]["lines"]  # bit for bit


@pytest.mark.slow
def test_float16_under_zero_skips_what_overflows_and_goes_on_exactly(scenario, tmp_path):
    runs = scenario("float16", tmp_path)
    for engine in ENGINES[1:]:
        ended(runs[engine], 0, 0)
        ended(runs[f"{engine} again"], 0, 0)
        whole = runs[engine]["lines"]
        assert whole[0]["train/skipped"] == 1
        assert 1 < whole[-1]["train/skipped"] < whole[-1]["step"] == 6
        assert whole[0]["train/loss_scale"] == 2**21
        assert runs[f"{engine} again"]["lines"] == whole  # bit for bit


def judge_endurance(found: dict, kills: int) -> None:
    ended(found["whole"], *[0] * len(found["whole"]["status"]))
    ended(found["end"], *[0] * len(found["end"]["status"]))
    whole, killed = found["lines"]
    assert [m.rpartition("; ")[2] for m in found["moments"]] == ["-9"] * kills, found["moments"]
    assert [r["step"] for r in killed] == [r["step"] for r in whole]
    assert killed == whole  # bit for bit
    assert found["kept"] == [
        f"step-{whole[-1]['step'] - back:08d}" for back in (4, 0)
    ]  # nothing half-written or half-removed


def test_killed_in_an_update_and_in_a_save_then_resumed_equals_uninterrupted(scenario, tmp_path):
    in_update, in_save = scenario("killed", tmp_path / "killed", "update:5", "save:8")
    assert in_update == {"signal": -signal.SIGKILL, "checkpoints": ["step-00000004"]}
    assert in_save == {"signal": -signal.SIGKILL, "checkpoints": [".step-00000008.partial", "step-00000004"]}
    torch.set_num_threads(1)
    assert trainer(tmp_path / "whole").run().step == 12
    assert trainer(tmp_path / "killed", model=TinyLM(seed=99)).run().step == 12
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    folders = [tmp_path / name / "checkpoints" for name in ("killed", "whole")]
    assert {p.name for p in folders[0].iterdir()} == {p.name for p in folders[1].iterdir()}
    for part in ("model/model.safetensors", "engine/optimizer.safetensors"):
        one, other = (load_file(folder / "step-00000012" / part) for folder in folders)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("engine", "ranks", "kills"), [("local", 1, 5), ("zero2", 2, 3)])
def test_killed_at_random_moments_equals_uninterrupted(scenario, tmp_path, engine, ranks, kills):
    judge_endurance(scenario("endurance", tmp_path, engine, ranks, kills, 7, 24), kills)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("engine", "ranks"), [("local", 1), ("zero2", 2)])
def test_killed_twenty_times_equals_uninterrupted(scenario, tmp_path, engine, ranks):
    found = scenario("endurance", tmp_path, engine, ranks, 20, 11, 120)
    print("", *found["moments"], sep="\n")
    judge_endurance(found, 20)
