"""Muon: orthogonal updates for matrices, AdamW's own numbers for the rest."""

from __future__ import annotations

import pytest
import torch
from tiny_training import TinyLM

from ttt.config.schema import TrainSection
from ttt.train.engines import LocalEngine
from ttt.train.muon import Muon, orthogonalize
from ttt.train.optimizers import build_optimizer


@pytest.mark.parametrize("shape", [(8, 8), (6, 12), (12, 6)])
def test_singular_values_come_near_one(shape):
    u = orthogonalize(torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(u)
    assert u.shape == (3, *shape) and ((values > 0.5) & (values < 1.4)).all()


def test_other_parameters_get_exactly_adamw():
    gen = torch.Generator().manual_seed(1)
    start = torch.randn(5, 3, generator=gen)
    a, b = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours = Muon([{"params": [a], "weight_decay": 0.1, "matrix": False}], 0.01, (0.9, 0.98), 1e-8)
    theirs = torch.optim.AdamW([b], lr=0.01, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        grad = torch.randn(5, 3, generator=gen)
        a.grad, b.grad = grad.clone(), grad.clone()
        ours.step()
        theirs.step()
    assert torch.allclose(a, b, atol=1e-6)


def test_a_matrix_moves_by_the_same_length_whatever_its_gradient():
    moved = []
    for scale in (1e-3, 1e3):
        p = torch.nn.Parameter(torch.zeros(8, 4))
        optimizer = Muon([{"params": [p], "weight_decay": 0.0, "matrix": True}], 0.01, (0.9, 0.95), 1e-8)
        p.grad = scale * torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
        optimizer.step()
        moved.append(p.detach().clone())
    assert torch.allclose(moved[0], moved[1], atol=1e-5)
    assert float(moved[0].norm()) == pytest.approx(0.01 * 0.2 * 8**0.5 * 2, rel=0.3)


def test_state_is_saved_and_loaded_exactly(tmp_path):
    train = TrainSection(steps=10, lr=0.01, optimizer="muon", clip_norm=0.0)

    def updated(engine, seed):
        gen = torch.Generator().manual_seed(seed)
        for p in engine.parameters:
            p.grad = torch.randn(p.shape, generator=gen)
        engine.step(0.01)
        return [p.detach().clone() for p in engine.parameters]

    first = LocalEngine(TinyLM(), train, "cpu")
    assert isinstance(build_optimizer(TinyLM(), train), Muon)
    updated(first, 1)
    first.save(tmp_path)
    second = LocalEngine(TinyLM(), train, "cpu")
    second.model.load_state_dict(first.model.state_dict())
    second.load(tmp_path)
    for a, b in zip(updated(first, 2), updated(second, 2), strict=True):
        assert torch.equal(a, b)
