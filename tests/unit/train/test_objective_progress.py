"""What an objective is told of training progress: a function of the update, the same after a resume and in a crash's record."""

import os
import signal

import pytest
import torch
from tiny_training import Toy, ToyLoader, trainer

from ttt.objective.library import Nar
from ttt.registry.families import OBJECTIVE
from ttt.train.trainer import load_crash


class Told(Toy):
    """Writes down what it is told; fails at one update if asked."""

    def __init__(self, fails_at: float = 2.0) -> None:
        super().__init__()
        self.seen: list[float] = []
        self.fails_at = fails_at

    def plan(self, batch, gen):
        self.seen.append(batch.progress)
        if batch.progress >= self.fails_at:
            raise ValueError("asked for")
        return super().plan(batch, gen)

    def clean_plan(self, batch, gen):
        return super().plan(batch, gen)


class Stopping(ToyLoader):
    def micro_batch(self, update, index):
        if update == 6 and index == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().micro_batch(update, index)


def test_progress_is_the_share_of_updates_done_also_after_a_resume(tmp_path):
    whole, first, second = Told(), Told(), Told()
    trainer(tmp_path / "whole", objective=whole).run()
    assert whole.seen == [u / 12 for u in range(12) for _ in range(2)]
    assert trainer(tmp_path / "parts", Stopping(), objective=first).run().stopped == "SIGTERM"
    assert trainer(tmp_path / "parts", objective=second).run().step == 12
    assert first.seen + second.seen == whole.seen


def test_a_crash_keeps_it(tmp_path):
    with pytest.raises(ValueError, match="asked for"):
        trainer(tmp_path, objective=Told(0.5)).run()
    kept = load_crash(tmp_path / "crash-00000007")
    assert [b.progress for b in kept.batches] == [0.5, 0.5] and kept.batches[0].space is None


def test_a_crash_keeps_the_code_ranges(tmp_path):
    from tests.conftest import random_batch
    from ttt.train.crash import save_crash

    objective = OBJECTIVE.build({"name": "nar", "noised": "speech", "constraint": "frame", "rate": "progress"}, "objective")
    assert isinstance(objective, Nar)
    batch = random_batch()
    save_crash(tmp_path / "c", [batch], ValueError("x"), objective, update=3, seed=1)
    kept = load_crash(tmp_path / "c")
    assert kept.batches[0].space == batch.space and kept.batches[0].tasks == batch.tasks
    assert torch.equal(kept.draw(objective, 0).input_ids, kept.plans[0]["input_ids"])
