"""What must hold on an accelerator, with the device as an argument: the ordinary suite runs the same checks on the CPU."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest
import torch

from ttt.bench import size
from ttt.bench.decode import BLOCK, Bench
from ttt.bench.workload import SHAPE, network, packed, work
from ttt.masks.library import Hybrid
from ttt.objective.library import TtT
from ttt.objective.losses import _send
from ttt.registry.families import NOISE, OBJECTIVE, WEIGHTING
from ttt.rng import generator

# Compiled kernels of FlexAttention ask for heads of 16 at least; spread weights keep the best two tokens apart.
TINY = {**SHAPE, "vocab_size": 400, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 96, "initializer_range": 0.3}  # fmt: skip


def loss_and_gradient(attention: str, device: str) -> tuple[float, float]:
    """Of packed documents under the hybrid mask, one network, one draw of the noise: the loss and its gradient's norm."""
    made = work(1, TINY["vocab_size"], [[150, 90, 170]])
    model = network(made.vocab, 1, attention, TINY).to(device)
    objective = TtT(Hybrid(), NOISE.build("linear", "test"), WEIGHTING.build("inverse_p", "test"), ())
    plan = objective.plan(packed(made.rounds[0], made.vocab), generator(1, "gpu"))
    terms = objective.terms(model, plan).terms.values()
    loss = sum(t.scale * t.sum / t.count for t in terms)
    loss.backward()
    squares = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    return float(loss.detach()), math.sqrt(squares)


def attention_equals_packed(attention: str, device: str) -> None:
    """``attention`` on ``device`` gives the loss and gradient of packed attention on the CPU."""
    expected = loss_and_gradient("packed", "cpu")
    assert expected[0] > 1 and expected[1] > 0.1
    assert loss_and_gradient(attention, device) == pytest.approx(expected, rel=1e-3)
    assert loss_and_gradient("packed", device) == pytest.approx(expected, rel=1e-3)


def greedy_tokens(device: str) -> list[list[int]]:
    """Answers to two prompts: text that is given, spans that the network fills."""
    bench = Bench(1, 2, TINY, prompt=20)
    bench.model.to(device)
    made = bench.decoder(Hybrid(), BLOCK // 4, "exact").generate(bench.prompts)
    assert len({i for g in made for i in g.ids}) > 20, "the network must say more than one thing"
    return [list(g.ids) for g in made]


def bfloat16_training(device: str, folder: Path) -> None:
    """Two updates of the trainer under autocast: finite losses and norms, and weights that moved."""
    from tests.unit.train.tiny_training import config
    from ttt.check.world import batch, network
    from ttt.config.schema import RunSection
    from ttt.train.trainer import Trainer

    class Loader:
        digest = "data"

        def micro_batch(self, update, index):
            return batch(10 * update + index)

        def epoch_of(self, update):
            return update / 4

    made = config(folder, steps=2, autocast="bfloat16", log_every_steps=1, save_every_steps=2, eval_every_steps=2)
    object.__setattr__(made, "run", RunSection(dir=str(folder), device=device))
    model = network().train()
    before = [p.detach().clone() for p in model.parameters()]
    Trainer(made, model, OBJECTIVE.build({"name": "ttt"}, "objective"), Loader(), [batch(7)]).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line[k]) for line in lines for k in ("train/loss", "train/grad_norm"))
    assert any(not torch.equal(a, b.detach().cpu()) for a, b in zip(before, model.parameters(), strict=True))


def sent_values_arrive(device: str) -> None:
    """What the loss sends to the device is what was there, slices and empty tensors too."""
    whole = torch.arange(1 << 16).view(256, 256)
    for values in (whole, whole.t(), whole[3:7, 5:9], whole[:0], whole > 100):
        there = _send(values, torch.device(device))
        assert there.device.type == device and torch.equal(there.cpu(), values)


def bench_size(device: str) -> None:
    """`ttt bench size` of a tiny network has every row."""
    parser = argparse.ArgumentParser()
    size.add_arguments(parser)
    told = ("--size", "tiny", "--device", device, "--tokens", "512", "--row", "256", "--batch", "2", "--prompt", "8")
    report = size.run(argparse.Namespace(repeat=1, threads=1, seed=1, json=None, **vars(parser.parse_args(told))))
    assert [t.name for t in report.timings] == ["causal", "hybrid", "decode_batch1", "decode_batch2"]
    assert report.ratios["hybrid"] > 0 and report.extra["mfu"]["hybrid"] > 0
    assert report.timings[3].work[0] == 2 * report.timings[2].work[0]
