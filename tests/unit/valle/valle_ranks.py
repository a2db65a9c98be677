"""What the test of several ranks runs: trainings of a small valle in forked processes (gloo), judged by the test.

``python valle_ranks.py FOLDER`` prints one JSON object.  It needs ``tests/unit/train`` on the path.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from rank_worlds import Ended, World, prepare

from tests.unit.valle.small_valle import batch, network, tokenizer
from ttt.config.schema import RunConfig, RunSection, TrainSection
from ttt.registry.families import OBJECTIVE
from ttt.train.engines import LocalEngine, world
from ttt.train.trainer import Trainer
from ttt.types import PackedBatch

BOOKS, MICRO_BATCHES, STEPS = 4, 2, 4
SIZES = (((5, 7), (4, 3), (6, 9)), ((3, 8),), ((4, 2), (2, 6)))


class Loader:
    """Uneven batches; one of update 1 has nothing to predict, so its rank has no gradient at all."""

    digest = "frames"

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def micro_batch(self, update: int, index: int) -> PackedBatch:
        number = index * self.size + self.rank
        made = batch(10 * update + number, SIZES[(update + 2 * number) % len(SIZES)], BOOKS)
        if (update, number) == (1, 1):
            made.target.zero_()
        return made

    def epoch_of(self, update: int) -> float:
        return update / 4


class Filled(LocalEngine):
    """What ZeRO does, in one process: a gradient of 0 where there is none."""

    def step(self, lr: float, beta1: float | None = None) -> float:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return super().step(lr, beta1)


def train(
    folder: Path, size: int, objective: dict[str, Any], arch: dict[str, Any], filled: bool = False, **section: Any
) -> World:  # fmt: skip
    """Start a run on ``size`` ranks; each begins with weights of its own, of which rank zero's count."""
    values = {
        "steps": STEPS, "accumulate": MICRO_BATCHES // size, "lr": 0.01, "eps": 1e-5, "log_every_steps": 1, "tensorboard": False,
        "save_every_steps": 1, "keep_checkpoints": 9, "eval_every_steps": 2, "clip_norm": 0.5, **section,
    }  # fmt: skip

    def work() -> int:
        rank, ranks = world()
        config = RunConfig(run=RunSection(dir=str(folder), device="cpu"), train=TrainSection(**values))
        model = network(BOOKS, seed=rank, **arch).train()
        dev = [batch(7, codebooks=BOOKS), batch(8, ((4, 4),), BOOKS)]
        learns = OBJECTIVE.build(objective, "objective")
        engine = Filled(model, config.train, "cpu") if filled else None
        return Trainer(config, model, learns, Loader(rank, ranks), dev, engine=engine).run().exit_code

    return World(size, work, folder.parent / f"{folder.name}-logs")


def told(ended: list[Ended]) -> dict[str, Any]:
    return {"status": [e.status for e in ended], "text": [e.text[-3000:] for e in ended]}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "books": ({"name": "valle"}, {}, {}),
    "scaled_adam": (
        {"name": "valle", "cut": {"mode": "uniform"}}, {"share_embeddings": True, "nar_scale_factor": 2.0},
        {"optimizer": {"name": "scaled_adam", "clipping_update_period": 2}, "schedule": "eden"},
    ),
    "nar alone": ({"name": "valle", "stage": 2}, {}, {"weight_decay": 0.5}),
    "masked": ({"name": "valle_masked"}, {"nar": "masked"}, {}),
}  # fmt: skip


def main(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case, (objective, arch, section) in CASES.items():
        for size in (1, 2):
            found[f"{case} {size}"] = told(train(root / f"{case} {size}", size, objective, arch, **section).wait())
    # From the checkpoint after the first update, when not every codebook has been drawn: as it was, and on one process.
    for case in ("books", "scaled_adam"):
        objective, arch, section = CASES[case]
        for size in (2, 1):
            again = root / f"{case} again {size}"
            shutil.copytree(root / f"{case} 2", again)
            for step in range(2, STEPS + 1):
                shutil.rmtree(again / f"checkpoints/step-{step:08d}")
            found[again.name] = told(train(again, size, objective, arch, **section).wait())
    objective, arch, _ = CASES["books"]
    zero: dict[str, Any] = {"engine": "deepspeed", "zero_stage": 1}
    found["filled"] = told(train(root / "filled", 1, objective, arch, True).wait())
    found["zero1"] = told(train(root / "zero1", 2, objective, arch, **zero).wait())
    found["zero2"] = told(train(root / "zero2", 1, objective, arch, **{**zero, "zero_stage": 2}).wait())
    for name, size, section in (("zero1 to zero1", 2, zero), ("zero1 to local", 1, {})):
        shutil.copytree(root / "zero1", root / name)
        shutil.rmtree(root / name / f"checkpoints/step-{STEPS:08d}")
        found[name] = told(train(root / name, size, objective, arch, not section, **section).wait())
    return found


if __name__ == "__main__":
    prepare()
    tokenizer(BOOKS)  # once, and with it the imports that every rank would make
    print(json.dumps(main(Path(sys.argv[1]))), flush=True)
    os._exit(0)  # the orderly end of so many imports takes seconds
