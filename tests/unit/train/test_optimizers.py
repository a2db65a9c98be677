"""Optimisers against references that work number by number in float64, and against published test vectors."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from tiny_training import TinyLM, lines, trainer
from torch import nn

from ttt.config.schema import TrainSection
from ttt.errors import ConfigError
from ttt.registry.families import OPTIMIZER
from ttt.train.eve import Eve
from ttt.train.learning_rate import check_section
from ttt.train.optimizers import build_optimizer
from ttt.train.scaled_adam import ScaledAdam

OPTIMIZERS = OPTIMIZER.names()


def section(**values) -> TrainSection:
    return TrainSection(**{"steps": 100, "lr": 0.05, **values})


@pytest.mark.parametrize("name, made", [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_adam_is_fused_where_every_parameter_allows_it(name, made):
    optimizer = build_optimizer(TinyLM(), section(optimizer=name))
    assert type(optimizer) is made and all(g["fused"] is True for g in optimizer.param_groups)
    elsewhere = build_optimizer(TinyLM().to("meta"), section(optimizer=name))
    assert not any(g["fused"] for g in elsewhere.param_groups)


class Net(nn.Module):
    """A matrix, a large vector, a tiny one and a single number: every branch of ScaledAdam."""

    def __init__(self) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(3)
        self.matrix = nn.Parameter(torch.randn(4, 3, generator=gen))
        self.large = nn.Parameter(5 * torch.randn(6, generator=gen))
        self.tiny = nn.Parameter(1e-7 * torch.randn(5, generator=gen))
        self.one = nn.Parameter(torch.tensor(9.99))


def gradients(step: int) -> list[torch.Tensor]:
    """Of all parameters of `Net`; every seventh is a hundred times as large, for the clipping."""
    gen = torch.Generator().manual_seed(100 + step)
    size = 100.0 if step % 7 == 6 else 1.0
    shift = -3.0 if step > 20 else 0.5  # `one` is pushed against its limit
    return [size * torch.randn(s, generator=gen) + shift for s in ((4, 3), (6,), (5,), ())]


def reference_scaled_adam(
    lr: float, steps: int, scale: float, period: int, in_gradient: bool, betas: tuple[float, float] = (0.9, 0.95)
) -> list[list[float]]:  # fmt: skip
    """Weights after ``steps`` updates, one number after the other, as the published recipe says."""
    b1, b2 = betas
    weights = [p.detach().double().flatten().tolist() for p in Net().parameters()]
    states: list[dict] = [
        {"delta": [0.0] * len(w), "v": [0.0] * len(w), "rms": _rms(w), "vs": 0.0, "products": [0.0] * 4}
        for w in weights
    ]
    ring, threshold = [0.0] * period, 0.0
    for n in range(steps):
        grads = [g.double().flatten().tolist() for g in gradients(n)]
        norm = math.sqrt(
            sum(sum((x * (s["rms"] if len(g) > 1 else 1.0)) ** 2 for x in g) for g, s in zip(grads, states))
        )
        factor = 1.0
        if n > 0:
            ring[n % period] = norm
            if n % period == 0:
                threshold = scale * sorted(ring)[2 * (period // 4)]
            if n >= period:
                factor = min(1.0, threshold / norm)
        for w, g, s in zip(weights, grads, states):
            clipped = [factor * x for x in g]
            s["delta"] = [b1 * d for d in s["delta"]]
            if len(w) > 1:
                s["products"][n % 4] = sum(a * b for a, b in zip(w, clipped))
                if n % 4 == 3:
                    s["rms"] = _rms(w)
                    b = b2**4
                    s["vs"] = b * s["vs"] + (1 - b) * sum(x * x for x in s["products"]) / 4
                    c = 1 - b ** ((n + 1) / 4)
                    move = -lr * 0.1 * math.sqrt(c) * sum(s["products"]) / (math.sqrt(s["vs"]) + 1e-8)
                    move = 0.0 if s["rms"] < 1e-5 else -lr * 0.1 * 4 if s["rms"] > 3 else move
                    s["delta"] = [d + (1 - b1) * x * move for d, x in zip(s["delta"], w)]
            used = clipped if in_gradient else g
            s["v"] = [b2 * v + (1 - b2) * x * x for v, x in zip(s["v"], used)]
            correction = 1 - b2 ** (n + 1)
            if len(w) > 1 and correction >= 0.99:
                correction = 1.0
            rate = lr * max(s["rms"], 1e-5) if len(w) > 1 else 0.1 * lr
            s["delta"] = [
                d - rate * (1 - b1) * x / (math.sqrt(v / correction) + 1e-8) for d, v, x in zip(s["delta"], s["v"], used)
            ]  # fmt: skip
            for i, d in enumerate(s["delta"]):
                if len(w) == 1:
                    w[i] = min(10.0, max(-10.0, w[i]))
                w[i] += d
    return weights


def _rms(w: list[float]) -> float:
    return math.sqrt(sum(x * x for x in w) / len(w))


def run(optimizer: torch.optim.Optimizer, model: nn.Module, steps: int) -> list[torch.Tensor]:
    for n in range(steps):
        for p, g in zip(model.parameters(), gradients(n), strict=True):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("in_gradient", [True, False])
@pytest.mark.parametrize("steps", [1, 4, 13, 120])
def test_scaled_adam_equals_a_reference_number_by_number(steps, in_gradient):
    model = Net()
    optimizer = ScaledAdam(
        model.parameters(), 0.05, (0.9, 0.95), 1e-8, clipping_update_period=8, clip_gradient=in_gradient
    )
    found = run(optimizer, model, steps)
    wanted = reference_scaled_adam(0.05, steps, 2.0, 8, in_gradient)
    for p, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(p.flatten().double(), torch.tensor(w, dtype=torch.float64), rtol=2e-4, atol=1e-6)


def test_clipping_matters_where_the_gradient_is_cut():
    wanted = [reference_scaled_adam(0.05, 60, s, 8, True)[0] for s in (2.0, 1e9)]
    assert max(abs(a - b) for a, b in zip(*wanted)) > 1e-3


def test_scaled_adam_first_step_of_the_specification():
    p = nn.Parameter(torch.tensor([2.0, 2.0]))
    optimizer = ScaledAdam([p], 0.05, (0.9, 0.95), 1e-8)
    p.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([1.99, 1.99]))


def test_eve_is_adam_with_a_decay_of_large_tensors_only():
    model, twin = Net(), Net()
    eve = Eve(model.parameters(), 0.01, (0.9, 0.98), 1e-8, weight_decay=0.1, target_rms=0.1)
    adam = torch.optim.Adam(twin.parameters(), lr=0.01, betas=(0.9, 0.98), eps=1e-8)
    for n in range(30):
        for p, q, g in zip(model.parameters(), twin.parameters(), gradients(n), strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        before = [p.detach().clone() for p in model.parameters()]
        eve.step()
        with torch.no_grad():
            for p, q in zip(before, twin.parameters(), strict=True):
                q.copy_(p * 0.9 if p.numel() > 1 and float(p.norm()) > 0.1 * p.numel() ** 0.5 else p)
        adam.step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    x = torch.randn(64, 6)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2]], dim=1)
    optimizer = build_optimizer(model, section(lr=0.02, optimizer=name, weight_decay=0.0))
    losses = []
    for _ in range(150):
        loss = (model(x) - y).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_exactly(name, tmp_path):
    """Weights, log and optimiser state of a run in two parts equal those of one that was left alone."""
    optimizer = {"name": name, "clipping_update_period": 3} if name == "scaled_adam" else name
    values = {"optimizer": optimizer, "schedule": {"name": "eden", "lr_batches": 3.0, "lr_epochs": 1.0}}
    whole = trainer(tmp_path / "whole", **values)
    whole.run()
    trainer(tmp_path / "parts", steps=5, **{**values, "eval_every_steps": 6}).run()
    again = trainer(tmp_path / "parts", **values)
    again.run()
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        mine, other = (t.engine.optimizer.state[x] for t, x in ((whole, p), (again, q)))
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[k], other[k]) and mine[k].shape == other[k].shape for k in mine)
    kept = [row for row in lines(tmp_path / "parts") if row["step"] > 6]
    assert kept == [row for row in lines(tmp_path / "whole") if row["step"] > 6]


def test_scaled_adam_leaves_a_parameter_without_gradient_alone():
    model = Net()
    optimizer = ScaledAdam(model.parameters(), 0.05, (0.9, 0.95), 1e-8)
    model.large.grad = torch.ones(6)
    before = model.matrix.detach().clone()  # the first parameter, where the norms are kept
    optimizer.step()
    assert torch.equal(model.matrix, before) and "delta" not in optimizer.state[model.matrix]
    assert float(optimizer.state[model.matrix]["norms_seen"]) == 1


def test_an_optimizer_that_clips_itself_is_not_clipped_twice(tmp_path):
    engines = {name: trainer(tmp_path / name, optimizer=name).engine for name in ("adamw", "scaled_adam")}
    assert (engines["adamw"].clip_norm, engines["scaled_adam"].clip_norm) == (1.0, 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_takes_elementwise_optimizers_only(name):
    from ttt.train.engines.deepspeed_config import check_deepspeed, deepspeed_config

    train = section(optimizer=name, engine="deepspeed")
    if OPTIMIZER.get(name).elementwise:
        check_deepspeed(train)
        assert deepspeed_config(train, 2, 8)["gradient_clipping"] == 1.0
    else:
        with pytest.raises(
            ConfigError, match=rf"'{name}' needs whole parameters.*train.optimizer=adam\|adamw, or train"
        ):
            check_deepspeed(train)


def test_settings_of_an_optimizer_are_checked_with_their_key():
    with pytest.raises(ConfigError, match=r"train.optimizer.clip_scale: no such key in 'scaled_adam'"):
        build_optimizer(TinyLM(), section(optimizer={"name": "scaled_adam", "clip_scale": 1}))
    with pytest.raises(ConfigError, match=r"train.optimizer.size_update_period: must be >= 1"):
        build_optimizer(TinyLM(), section(optimizer={"name": "scaled_adam", "size_update_period": 0}))
    with pytest.raises(ConfigError, match=r"final_beta1: muon keeps its beta1"):
        check_section(section(optimizer="muon", final_beta1=0.5))


def test_an_optimizer_of_a_plugin(tmp_path: Path):
    from ttt.registry.plugins import load_plugins

    (tmp_path / "sgd.py").write_text(
        "from dataclasses import dataclass\nimport torch\nfrom ttt.interfaces import OptimizerSpec\n"
        "from ttt.registry.families import OPTIMIZER\n\n\n"
        '@OPTIMIZER.register("plain_sgd")\n@dataclass(frozen=True)\nclass Plain(OptimizerSpec):\n    """SGD."""\n'
        "    momentum: float = 0.9\n    def build(self, model, train):\n"
        "        return torch.optim.SGD(model.parameters(), lr=train.lr, momentum=self.momentum)\n"
    )
    load_plugins([str(tmp_path / "sgd.py")], None)
    try:
        made = trainer(tmp_path / "run", optimizer={"name": "plain_sgd", "momentum": 0.5}, schedule="noam")
        assert made.run().step == 12 and made.engine.optimizer.param_groups[0]["momentum"] == 0.5
    finally:
        OPTIMIZER._entries.pop("plain_sgd")


def test_beta1_moves_and_the_step_length_is_kept(tmp_path):
    made = trainer(tmp_path / "run", schedule="constant", warmup_steps=0, final_beta1=0.5, log_every_steps=1)
    made.run()
    assert made.engine.optimizer.param_groups[0]["betas"] == pytest.approx((0.5 + 0.4 / 12, 0.95))
    rates = [row["train/lr"] for row in lines(tmp_path / "run") if "train/lr" in row]
    assert rates == pytest.approx([0.05 * 0.1 / (0.5 - 0.4 * (1 - u / 12)) for u in range(12)])


def test_length_and_warmup_in_epochs(tmp_path):
    made = trainer(tmp_path / "run", steps="???", epochs=2.5, warmup_steps=0, warmup_epochs=0.5)
    assert (made.config.train.steps, made.config.train.warmup_steps) == (10, 2)  # four updates an epoch
    assert made.run().step == 10
    both = trainer(tmp_path / "both", steps=3, epochs=2.5, warmup_steps=1, warmup_epochs=0.5).config.train
    assert (both.steps, both.warmup_steps) == (3, 1)
    again = dataclasses.replace(made.config)
    assert trainer(tmp_path / "run", steps="???", epochs=2.5, warmup_steps=0, warmup_epochs=0.5).run().step == 10
    assert again.train.epochs == 2.5
