"""`make test-gpu`: the checks of `device_checks` on an NVIDIA GPU, against the CPU."""

import pytest
import torch

from tests.gpu import device_checks as checks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]


def test_flex_attention_gives_the_loss_of_packed_attention():
    checks.attention_equals_packed("flex_attention", "cuda")


def test_auto_attention_gives_the_loss_of_packed_attention():
    checks.attention_equals_packed("auto", "cuda")


def test_greedy_tokens_are_those_of_the_cpu():
    assert checks.greedy_tokens("cuda") == checks.greedy_tokens("cpu")


def test_a_bfloat16_training_is_finite(tmp_path):
    checks.bfloat16_training("cuda", tmp_path)


def test_sent_values_arrive():
    checks.sent_values_arrive("cuda")


def test_bench_size():
    checks.bench_size("cuda")
