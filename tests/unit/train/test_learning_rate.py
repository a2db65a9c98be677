"""Learning-rate values and parameter groups."""

from __future__ import annotations

import pytest
import torch
from tiny_training import TinyLM
from torch import nn

from ttt.config.schema import TrainSection
from ttt.errors import ConfigError, UnknownNameError
from ttt.registry.families import LR_SCHEDULE
from ttt.train.learning_rate import check_section, lr_at
from ttt.train.optimizers import build_optimizer, parameter_groups


def section(**values) -> TrainSection:
    return TrainSection(**{"steps": 100, "lr": 1.0, **values})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"schedule": "constant", "warmup_steps": 4}, {0: 0.25, 3: 1.0, 50: 1.0, 99: 1.0}),
        ({"schedule": "linear"}, {0: 1.0, 50: 0.5, 75: 0.25, 100: 0.0}),
        ({"schedule": "linear", "warmup_steps": 20}, {9: 0.5, 20: 1.0, 60: 0.5, 100: 0.0}),
        ({"schedule": "linear", "decay_start": 0.8}, {10: 1.0, 80: 1.0, 90: 0.5, 100: 0.0}),
        ({"schedule": "cosine"}, {0: 1.0, 50: 0.5, 100: 0.0}),
        ({"schedule": "cosine", "min_lr_ratio": 0.1}, {50: 0.55, 100: 0.1, 150: 0.1}),
        ({"schedule": "linear", "decay_start": 1.0}, {99: 1.0, 100: 1.0}),
    ],
)
def test_learning_rate(values, expected):
    train = section(**values)
    assert {u: lr_at(train, u) for u in expected} == pytest.approx(expected)


def test_unknown_names_are_answered_with_the_right_spelling():
    with pytest.raises(
        UnknownNameError, match=r"train.schedule: no learning-rate schedule named 'cosin'. Did you mean 'cosine'\?"
    ):
        check_section(section(schedule="cosin"))
    with pytest.raises(UnknownNameError, match=r"train.optimizer: no optimizer named 'adma'. Did you mean 'adam'\?"):
        check_section(section(optimizer="adma"))


def test_eden_equals_the_published_values():
    train = section(schedule="eden", lr=0.05, warmup_steps=200)
    assert lr_at(train, 0) == pytest.approx(0.025)
    assert lr_at(train, 200) == pytest.approx(0.05 * 1.0016**-0.25)
    assert lr_at(train, 5000, epoch=4.9) == pytest.approx(0.05 * 2**-0.5)  # whole epochs count: 4
    assert lr_at(train, 100) == pytest.approx(0.05 * 0.75 * (100**2 / 5000**2 + 1) ** -0.25)


def test_noam_rises_to_its_peak_and_falls():
    train = section(schedule={"name": "noam", "width": 64}, lr=2.0, warmup_steps=10)
    rates = [lr_at(train, u) for u in range(100)]
    assert rates.index(max(rates)) == 9 and rates[9] == pytest.approx(2.0 * 64**-0.5 * 10**-0.5)
    assert rates[0] == pytest.approx(rates[9] / 10) and rates[39] == pytest.approx(rates[9] / 2)


@pytest.mark.parametrize("name", LR_SCHEDULE.names())
def test_every_schedule_rises_over_the_warmup_and_never_after(name):
    train = section(schedule=name, lr=0.5, warmup_steps=12, min_lr_ratio=0.0)
    rates = [lr_at(train, u, epoch=u / 30) for u in range(100)]
    assert all(0 <= r <= 0.5 for r in rates) and rates == [lr_at(train, u, epoch=u / 30) for u in range(100)]
    assert rates[:12] == sorted(rates[:12]) and rates[13:] == sorted(rates[13:], reverse=True)


def test_learning_rate_by_seconds_reaches_its_floor_when_the_time_is_over():
    train = section(schedule="linear", schedule_by="seconds", max_seconds=10.0, warmup_steps=2, decay_start=0.5)
    assert lr_at(train, 0, 0.0) == pytest.approx(0.5)
    assert lr_at(train, 5, 5.0) == pytest.approx(1.0)
    assert lr_at(train, 6, 7.5) == pytest.approx(0.5)
    assert lr_at(train, 7, 10.0) == pytest.approx(0.0)
    assert lr_at(train, 100, 1.0) == pytest.approx(0.0)  # the steps ran out first


class SomeRMSNorm(nn.Module):
    """A norm of a backbone's own, with a matrix in it to show that the type decides."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 2))


def names(model: nn.Module, groups: list[dict]) -> list[set[str]]:
    known = {id(p): n for n, p in model.named_parameters()}
    return [{known[id(p)] for p in g["params"]} for g in groups]


def test_norms_and_biases_are_not_decayed():
    model = TinyLM()
    model.extra = SomeRMSNorm()
    groups = parameter_groups(model, 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert names(model, groups) == [
        {"embed.weight", "mix.weight"}, {"norm.weight", "norm.bias", "mix.bias", "extra.scale"}
    ]  # fmt: skip


def test_embeddings_can_be_spared_with_the_layer_tied_to_them():
    model = TinyLM()
    assert names(model, parameter_groups(model, 0.1, decay_embeddings=False))[0] == {"mix.weight"}


def test_frozen_parameters_are_not_optimised():
    model = TinyLM()
    model.mix.weight.requires_grad_(False)
    assert "mix.weight" not in set.union(*names(model, parameter_groups(model, 0.1)))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameters"):
        build_optimizer(model, section())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "???"}, r"train.steps: missing mandatory value; give train.steps=... or train.epochs="),
        ({"final_beta1": 1.0}, r"^final_beta1: must be >= 0 and < 1"),
        ({"schedule_by": "hours"}, r"^schedule_by: no 'hours'"),
        ({"schedule_by": "seconds"}, r"schedule_by: seconds needs train.max_seconds > 0"),
        ({"autocast": "bf16"}, r"^autocast: no 'bf16'"),
        ({"steps": 0}, r"train.steps: missing mandatory value; give"),
        ({"keep_checkpoints": 0}, r"^keep_checkpoints: must be >= 1"),
        ({"decay_start": 2.0}, r"^decay_start: must be >= 0 and <= 1"),
        ({"max_seconds": -1.0}, r"^max_seconds: must be >= 0"),
    ],
)
def test_values_that_cannot_run_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        check_section(section(**values))
