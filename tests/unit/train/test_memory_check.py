"""``train.check_memory``: the costliest batch is tried before the first update, and the run is the same afterwards."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_training import TinyLM, Toy, ToyLoader, batch, config, lines, trainer

from tests.conftest import random_streams
from tests.unit.train.test_trainer import same_weights
from tests.unit.valle import small_valle
from ttt.data.batches.loader import Loader
from ttt.data.batches.prefetch import Prefetcher
from ttt.data.batches.text_ratio import Alternating, Blend
from ttt.errors import ConfigError
from ttt.registry.families import OBJECTIVE
from ttt.train.engines import build_engine
from ttt.train.memory_check import check_memory

pytestmark = pytest.mark.usefixtures("one_thread")


class Dear(ToyLoader):
    """Tells which of its batches costs most; counts how often it was asked."""

    asked = 0

    def costliest_batch(self, epoch):
        self.asked += 1
        return (30.0, 25), batch(99, rows=5)


class Stopped(Dear):
    """Is told to stop in its seventh update."""

    def micro_batch(self, update, index):
        if update == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().micro_batch(update, index)


class Greedy(Toy):
    """Fails after a first backward has left gradients."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def terms(self, model, plan):
        super().terms(model, plan).terms["ar"].sum.backward()
        raise self.error


def test_losses_and_weights_are_those_without_it_also_after_a_resume(tmp_path):
    runs = {name: tmp_path / name for name in ("without", "with", "resumed")}
    trainer(runs["without"]).run()
    loader = Dear()
    trainer(runs["with"], loader, check_memory=True).run()
    assert loader.asked == 1
    assert trainer(runs["resumed"], Stopped(), check_memory=True).run().stopped == "SIGTERM"
    again = Dear()
    assert trainer(runs["resumed"], again, check_memory=True).run().step == 12 and again.asked == 1
    done = Dear()
    trainer(runs["with"], done, check_memory=True).run()
    assert done.asked == 0  # nothing is left to do
    for name in ("with", "resumed"):
        assert lines(runs[name]) == lines(runs["without"])  # losses to the last bit
        same_weights(runs[name], runs["without"])


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate 3 GiB"), MemoryError(),
     RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")],
)  # fmt: skip
def test_no_room_is_one_line_before_anything_is_trained(tmp_path, error):
    run = trainer(tmp_path, Dear(), objective=Greedy(error), check_memory=True)
    with pytest.raises(ConfigError) as caught:
        run.run()
    said = str(caught.value)
    assert "\n" not in said and "5 rows of 6 positions, 25 tokens, examples 99-0, 99-1, 99-2 and 2 more" in said
    assert "lower data.batch_tokens" in said and "memory of cpu" in said
    assert all(p.grad is None for p in run.model.parameters())
    assert run.state.step == 0 and not list((tmp_path / "checkpoints").iterdir()) and not list(tmp_path.glob("crash-*"))


def test_other_errors_are_no_matter_of_memory(tmp_path):
    run = trainer(tmp_path, Dear(), objective=Greedy(RuntimeError("shapes differ")), check_memory=True)
    with pytest.raises(RuntimeError, match="^shapes differ$"):
        run.run()
    assert all(p.grad is None for p in run.model.parameters())


def test_engines_that_cannot_drop_gradients_are_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="train.check_memory: engine 'deepspeed' cannot drop gradients"):
        trainer(tmp_path, Dear(), check_memory=True, engine="deepspeed")


def seen(work):
    """What ``work`` leaves behind in the process' generators."""
    torch.manual_seed(3)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    work()
    return torch.equal(state[0], torch.get_rng_state()) and np.array_equal(state[1], np.random.get_state()[1])


@pytest.mark.parametrize("name, nar", [("valle", "stages"), ("valle_masked", "masked")])
def test_other_model_classes(tmp_path, name, nar, caplog):
    net = small_valle.network(nar=nar, dropout=0.2).train()
    engine = build_engine(net, config(tmp_path).train, "cpu")
    objective = OBJECTIVE.build(name, "objective")
    caplog.set_level("INFO")
    assert seen(lambda: check_memory(engine, objective, small_valle.batch(), 1))
    assert all(p.grad is None for p in net.parameters()) and not engine.optimizer.state
    assert "the costliest batch of an epoch fits: 2 rows of" in caplog.text


ROW = 110


@pytest.mark.parametrize("layout", [{}, {"pack": False}, {"pack": False, "buckets": 3, "quadratic": 50.0}])
def test_the_costliest_batch_is_the_one_that_counts_most(vocab, layout):
    streams = [s for s in random_streams(5, 70, 20) if len(s) <= ROW]
    loader = Loader(streams, vocab, row_tokens=ROW, batch_tokens=3 * ROW, seed=3, world=2, accumulate=2, **layout)
    other = Loader(streams, vocab, row_tokens=ROW, batch_tokens=3 * ROW, seed=3, world=1, accumulate=1, **layout)
    everything = [other.micro_batch(u, 0) for u in range(other.updates_per_epoch)]

    def counts(b):
        n = np.array([int((b.doc == d).logical_and(b.visible).sum()) for d in range(b.n_docs)], dtype=float)
        q = layout.get("quadratic", 0.0)
        widest = ROW if not layout else float((n + n * n / q if q else n).max())
        return len(b.ids) * widest, b.n_tokens

    (cost, tokens), found = loader.costliest_batch(0)
    assert (cost, tokens) == max(map(counts, everything)) == counts(found)
    assert found.uids in [b.uids for b in everything]
    before = loader.micro_batch(0, 0)
    loader.costliest_batch(2)
    assert loader.micro_batch(0, 0).uids == before.uids
    ahead = Prefetcher(loader, 2)
    assert ahead.costliest_batch(0)[1].uids == found.uids
    ahead.close()


def test_of_two_sources_the_dearer():
    def source(cost):
        return SimpleNamespace(
            accumulate=1, strategies=(), streams=[], digest="d", report=None, costliest_batch=lambda epoch: (cost, epoch)
        )

    both = object.__new__(Alternating)
    both.text, both.speech, both.blend = source((3.0, 1)), source((3.0, 2)), Blend(0.5, "batches")
    assert both.costliest_batch(4) == ((3.0, 2), 4)


def test_weights_and_mode_stay(tmp_path):
    model = TinyLM()
    engine = build_engine(model, config(tmp_path).train, "cpu")
    before = [p.detach().clone() for p in model.parameters()]
    check_memory(engine, Toy(), batch(1), 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) and model.training
