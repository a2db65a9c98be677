"""The checks for GPUs, as far as a CPU goes: they run, and they compare what they say they compare."""

import pytest

from tests.gpu import device_checks as checks
from ttt.masks.library import Causal


@pytest.mark.parametrize("attention", ["sdpa", "auto"])
def test_attention(attention):
    checks.attention_equals_packed(attention, "cpu")


def test_another_mask_would_be_noticed(monkeypatch):
    expected = checks.loss_and_gradient("packed", "cpu")
    monkeypatch.setattr(checks, "Hybrid", Causal)
    assert checks.loss_and_gradient("packed", "cpu") != pytest.approx(expected, rel=1e-3)


def test_greedy_tokens():
    first, second = checks.greedy_tokens("cpu")
    assert len(first) == len(second) == 249 and first != second


def test_bfloat16_training(tmp_path):
    checks.bfloat16_training("cpu", tmp_path)


def test_sent_values():
    checks.sent_values_arrive("cpu")
