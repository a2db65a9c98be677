"""`ttt bench size` tried out at a size that any machine can carry; what it measures is for an accelerator."""

import argparse

import pytest
import torch

from ttt.bench import size
from ttt.errors import ConfigError


def told(*words):
    parser = argparse.ArgumentParser()
    size.add_arguments(parser)
    return argparse.Namespace(repeat=1, threads=1, seed=1, json=None, **vars(parser.parse_args(words)))


def test_both_ways_and_both_batches_run(monkeypatch):
    monkeypatch.setattr("ttt.bench.decode.BLOCKS", 1)
    arguments = told(
        "--size", "tiny", "--device", "cpu", "--tokens", "512", "--row", "256", "--batch", "2", "--prompt", "8"
    )
    report = size.run(arguments)
    assert [t.name for t in report.timings] == ["causal", "hybrid", "decode_batch1", "decode_batch2"]
    assert report.timings[0].work == report.timings[1].work == (512.0,) and report.ratios["hybrid"] > 0
    assert report.timings[3].work[0] == 2 * report.timings[2].work[0]
    assert set(report.extra["first_block_s"]) == {"batch 1", "batch 2"} and 0 < report.extra["mfu"]["hybrid"] < 1.5


def test_flops_count_what_multiplies():
    arguments = told("--size", "tiny", "--device", "cpu", "--tokens", "256", "--row", "256")
    training = size.Training(arguments)
    config = training.model.hf.config
    linear = sum(m.weight.numel() for m in training.model.modules() if isinstance(m, torch.nn.Linear))
    attention = (
        3 * 2 * 2 * config.num_hidden_layers * config.hidden_size * 256 / 2
    )  # two products a layer, half of the row
    assert training.flops_per_token == pytest.approx(6 * linear + attention, rel=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tokens", "1000"), "--tokens: must be a multiple"),
        (("--tokens", "0"), "--tokens: must be a multiple"),
        (("--batch", "1"), "--batch: must be >= 2"),
        (("--prompt", "0"), "--prompt: must be >= 1"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        size.run(told("--device", "cpu", *words))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        size.run(told())
