"""The loop: exact resumes, run folders, signals, budgets, crashes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import TinyLM, Toy, ToyLoader, batch, lines, trainer

from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.train.checkpoint import DiskFullError, complete_checkpoints, latest_complete, read_state, verify
from ttt.train.crash import load_crash
from ttt.train.engines import load_weights
from ttt.train.step import NonFiniteError
from ttt.types import LossTerm, LossTerms

HERE = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert trainer(folder).run().stopped == "steps"
    return folder


def script(*arguments: str, launcher: tuple[str, ...] = ()) -> list[dict]:
    """Run tiny_training.py in a process of its own; what it printed."""
    path = os.pathsep.join([str(HERE.parents[2]), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(HERE / "tiny_training.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return [json.loads(found) for found in re.findall(r"\{.*?\}", done.stdout)]  # two ranks may share a line


def same_weights(one: Path, other: Path) -> None:
    for part in ("model/model.safetensors", "engine/optimizer.safetensors"):
        first, second = (load_file(latest_complete(f / "checkpoints") / part) for f in (one, other))
        assert first.keys() == second.keys()
        for name in first:
            assert torch.equal(first[name], second[name]), (part, name)


# ---- resuming ----------------------------------------------------------------------------------------------


def test_sigterm_saves_and_the_run_goes_on_exactly(uninterrupted, tmp_path):
    class Loader(ToyLoader):
        def micro_batch(self, update, index):
            if update == 6:  # twice: a scheduler's, and the launcher's that hands it on
                os.kill(os.getpid(), signal.SIGTERM)
            return super().micro_batch(update, index)

    before = signal.getsignal(signal.SIGTERM)
    report = trainer(tmp_path, Loader()).run()
    assert (report.step, report.stopped, report.exit_code) == (7, "SIGTERM", 0)
    assert signal.getsignal(signal.SIGTERM) == before
    assert read_state(report.checkpoint).stopped == "SIGTERM"
    assert trainer(tmp_path).run().step == 12
    assert lines(tmp_path) == lines(uninterrupted)
    same_weights(tmp_path, uninterrupted)


def test_an_interrupt_from_the_keyboard_saves_and_exits_130(tmp_path):
    class Loader(ToyLoader):
        def micro_batch(self, update, index):
            if update == 2 and index == 0:
                os.kill(os.getpid(), signal.SIGINT)
            return super().micro_batch(update, index)

    report = trainer(tmp_path, Loader()).run()
    assert (report.step, report.exit_code) == (3, 130)
    assert report.checkpoint.name == "step-00000003"


def test_a_finished_run_does_nothing_more(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_text()
    report = trainer(uninterrupted).run()
    assert (report.step, report.stopped, report.checkpoint.name) == (12, "steps", "step-00000012")
    assert (uninterrupted / "metrics.jsonl").read_text() == before


def test_lines_after_the_resumed_step_are_made_again(tmp_path):
    trainer(tmp_path, steps=6).run()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/loss": 1.0}\n{"step": 8, "tra')
    trainer(tmp_path, steps=9).run()
    assert [r["step"] for r in lines(tmp_path)] == [3, 6, 9]


@pytest.mark.slow
def test_two_ranks_equal_one_process_that_accumulates(tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    told = script(str(tmp_path / "two"), "12", launcher=torchrun)
    assert sorted((r["rank"], r["step"], r["stopped"]) for r in told) == [(0, 6, "SIGTERM"), (1, 6, "SIGTERM")]
    told = script(str(tmp_path / "two"), "13", launcher=torchrun)
    assert sorted((r["rank"], r["step"]) for r in told) == [(0, 13), (1, 13)]
    model = TinyLM()
    model.drop.p = 0.0
    # Two runs, as above: the schedule follows the number of steps.
    one = [trainer(tmp_path / "one", ToyLoader(), model, Toy(noise=False), accumulate=2, steps=n) for n in (12, 13)]
    one[0].loader = Stopping()
    assert one[0].run().step == 6
    assert one[1].run().step == 13
    first, second = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [r["step"] for r in first] == [r["step"] for r in second] == [3, 6, 9, 12, 13]
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    paths = [latest_complete(tmp_path / n / "checkpoints") / "model/model.safetensors" for n in ("one", "two")]
    weights = [load_file(p) for p in paths]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-5, rtol=0)


class Stopping(ToyLoader):
    """Asks for a stop in update 5."""

    def micro_batch(self, update, index):
        if update == 5 and index == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().micro_batch(update, index)


# ---- what is written ---------------------------------------------------------------------------------------


def test_metric_keys_are_stable(uninterrupted):
    records = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [3, 6, 9, 12]
    train_keys = {
        "train/loss", "train/loss/ar", "train/loss/nar", "train/nll/ar", "train/nll/nar", "train/grad_norm", "train/lr",
        "train/tokens", "train/tokens_per_s", "train/epoch", "train/seconds",
    }  # fmt: skip
    dev_keys = {"dev/loss", "dev/loss/ar", "dev/loss/nar", "dev/nll/ar", "dev/nll/nar"}
    assert set(records[0]) == {"step"} | train_keys
    assert set(records[1]) == {"step"} | train_keys | dev_keys
    assert records[-1]["train/loss"] < records[0]["train/loss"] and records[-1]["dev/loss"] < records[1]["dev/loss"]


def test_a_run_folder_says_what_ran(uninterrupted):
    import yaml

    assert yaml.safe_load((uninterrupted / "config.yaml").read_text())["train"]["lr"] == 0.05
    assert json.loads((uninterrupted / "data.json").read_text()) == {"data_digest": "data-a", "vocab_digest": "vocab-a"}
    assert json.loads((uninterrupted / "env.json").read_text())["packages"]["torch"]
    assert (uninterrupted / "command.txt").read_text().strip()
    checkpoint = latest_complete(uninterrupted / "checkpoints")
    assert checkpoint.name == "step-00000012"
    files = {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file()}
    assert files == {
        "COMPLETE", "config.yaml", "env.json", "state.json", "model/model.safetensors", "model/vocab.json",
        "engine/optimizer.safetensors", "engine/optimizer.json",
    }  # fmt: skip
    state = read_state(checkpoint)
    assert (state.step, state.stopped, state.data_digest) == (12, "steps", "data-a")
    assert len(complete_checkpoints(uninterrupted / "checkpoints")) == 2


def test_tensorboard_gets_the_same_values(tmp_path):
    pytest.importorskip("tensorboard")
    trainer(tmp_path, steps=3, tensorboard=True).run()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("train/loss")[0].value == pytest.approx(lines(tmp_path)[0]["train/loss"])


def test_callbacks_add_metrics_at_validation_time(tmp_path):
    seen = []

    def callback(running, step):
        seen.append((step, running.model.training, torch.is_grad_enabled()))
        return {"eval/asr/wer": 0.5}

    report = trainer(tmp_path, steps=8, callbacks=[callback]).run()
    assert seen == [(6, False, False), (8, False, False)]
    assert report.metrics["eval/asr/wer"] == 0.5
    assert [r["step"] for r in lines(tmp_path) if "eval/asr/wer" in r] == [6, 8]


# ---- time --------------------------------------------------------------------------------------------------


def test_answers_have_a_schedule_of_their_own_and_their_log_goes_on(tmp_path):
    def call(run, step):
        with (tmp_path / "answers.jsonl").open("a") as file:
            file.write(json.dumps({"step": step}) + "\n")
        return {"gen/qa/accuracy": 1.0}

    every = {"generate_items": 1, "generate_every_steps": 3, "callbacks": [call]}
    trainer(tmp_path, steps=7, save_every_steps=0, **every).run()
    (tmp_path / "answers.jsonl").open("a").write('{"step": 9}\n')  # of a run that was killed after its checkpoint
    trainer(tmp_path, **every).run()
    answered = [json.loads(line)["step"] for line in (tmp_path / "answers.jsonl").open()]
    assert answered == [3, 6, 7, 9, 12]
    assert [line["step"] for line in lines(tmp_path) if "gen/qa/accuracy" in line] == answered
    assert [line["step"] for line in lines(tmp_path) if "dev/loss" in line] == [6, 7, 12]
    with pytest.raises(ConfigError, match="generate_every_steps: nothing is generated"):
        trainer(tmp_path / "none", generate_every_steps=3)


def test_a_time_budget_finishes_the_run(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ttt.train.trainer.time.monotonic", lambda: now[0])

    class Loader(ToyLoader):
        def micro_batch(self, update, index):
            now[0] += 0.5
            return super().micro_batch(update, index)

    settings = {
        "steps": 1000, "schedule": "linear", "schedule_by": "seconds", "log_every_steps": 1, "save_every_steps": 0,
    }  # fmt: skip
    report = trainer(tmp_path, Loader(), max_seconds=5.0, **settings).run()
    assert (report.step, report.stopped, report.exit_code) == (5, "max_seconds", 0)
    assert read_state(report.checkpoint).stopped == "max_seconds"
    assert "dev/loss" in report.metrics
    rates = [r["train/lr"] for r in lines(tmp_path)]
    assert rates == pytest.approx([0.05 * 0.5, 0.05 * 0.8, 0.05 * 0.6, 0.05 * 0.4, 0.05 * 0.2])
    assert trainer(tmp_path, Loader(), max_seconds=5.0, **settings).run().step == 5
    assert trainer(tmp_path, Loader(), max_seconds=8.0, **settings).run().step == 8  # elapsed time was stored


# ---- failures ----------------------------------------------------------------------------------------------


class NanAt(ToyLoader):
    """A batch of 5 rows in update 2, micro-batch 1."""

    def micro_batch(self, update, index):
        return batch(55, 5) if (update, index) == (2, 1) else super().micro_batch(update, index)


class NanObjective(Toy):
    def terms(self, model, plan):
        found = super().terms(model, plan)
        if plan.input_ids.shape[0] == 5:
            return LossTerms({"ar": LossTerm(found.terms["ar"].sum * float("inf"), 1.0)})
        return found


def test_a_crash_keeps_the_batch(tmp_path, caplog):
    with pytest.raises(NonFiniteError, match="step 3: loss term 'ar' is not finite in examples 55-0, 55-1"):
        trainer(tmp_path, NanAt(), objective=NanObjective()).run()
    crash = load_crash(tmp_path / "crash-00000003")
    record, batches = crash.record, crash.batches
    assert record["update"] == 2 and "NonFiniteError" in record["error"] and len(batches) == 2
    assert torch.equal(batches[1].ids, batch(55, 5).ids) and batches[1].uids == batch(55, 5).uids
    assert "55-4" in caplog.text and "'AUDIO': 10" in caplog.text
    assert not list((tmp_path / "checkpoints").iterdir())


def test_any_exception_keeps_the_batch_and_passes_on(tmp_path):
    class Wrong(Toy):
        def terms(self, model, plan):
            raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        trainer(tmp_path, objective=Wrong()).run()
    assert load_crash(tmp_path / "crash-00000001").record["error"] == "ZeroDivisionError: here"
    with pytest.raises(DataError, match=r"crash-00000009/rank-0.json: no such file"):
        load_crash(tmp_path / "crash-00000009")


def test_a_crash_is_computed_again_from_its_files(tmp_path):
    """The stored batches, seed and weights of the last checkpoint give the loss that was not finite."""
    with pytest.raises(NonFiniteError):
        trainer(tmp_path, NanAt(), objective=NanObjective(), save_every_steps=1).run()
    crash = load_crash(tmp_path / "crash-00000003")
    model = TinyLM(seed=9)
    load_weights(model, latest_complete(tmp_path / "checkpoints") / "model")
    assert crash.replay(NanObjective(), model, 1) == {"ar": math.inf}
    fine = crash.replay(Toy(), model, 1)
    again = crash.replay(Toy(), model, 1)
    assert fine == again and all(map(math.isfinite, fine.values()))
    weights = crash.plans[1]["nar.weight"]
    assert len(weights) and torch.equal(weights, crash.draw(Toy(), 1).terms["nar"].weight)
    with pytest.raises(DataError, match=r"micro-batch 1: nar.weight is planned otherwise than then"):
        crash.replay(Toy(noise=False), model, 1)


def test_a_full_disk_keeps_the_last_good_checkpoint(uninterrupted, tmp_path, monkeypatch):
    import errno

    import safetensors.torch

    real = safetensors.torch.save_file

    def full(tensors, path, *rest):
        if ".step-00000008" in str(path) and "optimizer" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, *rest)

    monkeypatch.setattr("safetensors.torch.save_file", full)
    message = r"the disk is full: a checkpoint needs about 0.0 MiB.*goes on from step-00000004"
    with pytest.raises(DiskFullError, match=message) as info:
        trainer(tmp_path, keep_checkpoints=1).run()
    assert info.value.exit_code == 2
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    trainer(tmp_path, keep_checkpoints=1).run()
    assert lines(tmp_path) == lines(uninterrupted)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000012"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with little room; ``small_disk(size)`` makes it larger.  Needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> bool:
        return subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode == 0

    if not mount("-t", "tmpfs", "-o", "size=112k", "tmpfs"):
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder, lambda size: mount("-o", f"remount,size={size}")
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(uninterrupted, small_disk):
    folder, resize = small_disk
    with pytest.raises(DiskFullError, match=r"the disk is full: a checkpoint needs about .* free; make room"):
        trainer(folder, keep_checkpoints=100, save_every_steps=1).run()
    kept = complete_checkpoints(folder / "checkpoints")
    assert kept and {p.name for p in (folder / "checkpoints").iterdir()} == {p.name for p in kept}
    for path in kept:
        verify(path)
    assert resize("4m")
    assert trainer(folder, keep_checkpoints=100, save_every_steps=1).run().step == 12
    assert lines(folder) == lines(uninterrupted)


# ---- run folders -------------------------------------------------------------------------------------------


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    trainer(tmp_path, steps=3).run()
    with pytest.raises(ConfigError, match=r"holds another run; different: train.lr: 0.05 -> 0.1\. .*run.overwrite"):
        trainer(tmp_path, steps=3, lr=0.1).run()
    with pytest.raises(ConfigError, match=r"run.seed: 1 -> 2"):
        trainer(tmp_path, steps=3, run={"seed": 2}).run()


def test_other_data_are_refused(tmp_path):
    trainer(tmp_path, steps=3).run()
    other = ToyLoader()
    other.digest = "data-b"
    with pytest.raises(ConfigError, match=r"data_digest: data-a -> data-b"):
        trainer(tmp_path, other, steps=3).run()


def test_more_steps_are_welcome(tmp_path, caplog):
    trainer(tmp_path, steps=3).run()
    with caplog.at_level("INFO"):
        assert trainer(tmp_path, steps=6).run().step == 6
    assert "train.steps: 3 -> 6" in caplog.text and "follows the new length" in caplog.text


def test_overwrite_starts_over_and_removes_only_what_runs_write(uninterrupted, tmp_path):
    trainer(tmp_path, lr=0.01, save_every_steps=5).run()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"train.resume: false, but .* holds a run \(latest: step-00000012\)"):
        trainer(tmp_path, lr=0.01, resume=False).run()
    trainer(tmp_path, run={"overwrite": True}).run()
    assert lines(tmp_path) == lines(uninterrupted)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [p.name for p in complete_checkpoints(tmp_path / "checkpoints")] == ["step-00000008", "step-00000012"]


def test_a_damaged_checkpoint_stops_the_resume(tmp_path):
    trainer(tmp_path, steps=8).run()
    path = tmp_path / "checkpoints/step-00000008/model/model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    message = r"model.safetensors is 100 bytes, COMPLETE says \d+; .* is step-00000004"
    with pytest.raises(CheckpointError, match=message):
        trainer(tmp_path, steps=12).run()


def test_another_number_of_micro_batches_is_refused_with_the_mend(tmp_path):
    trainer(tmp_path, steps=3).run()
    message = (
        r"step-00000003: an update there has 2 micro-batches, this run has 1 ranks x 3: .* give train.accumulate=2, or"
    )
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, steps=6, accumulate=3).run()
