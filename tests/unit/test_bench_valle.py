"""`ttt bench valle` on a tiny network: what it times writes the same codes, and it says so when not."""

import argparse
import json

import pytest
import torch

from ttt.bench.valle import Bench, add_arguments
from ttt.cli.main import main
from ttt.errors import ConfigError, TttError

SMALL = [
    "--prompt", "6", "--frames", "5", "--codebooks", "3", "--batch", "3", "--dim", "16", "--layers", "1", "--repeat", "2",
]  # fmt: skip


def told(*more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.set_defaults(seed=1)
    return parser.parse_args([*SMALL[:-2], *more])


def test_the_report_has_the_ratios_of_both_sizes(tmp_path, capsys):
    threads = torch.get_num_threads()
    assert main(["bench", "valle", *SMALL, "--json", str(tmp_path / "valle.json")]) == 0
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "valle.json").read_text())
    ways = {"uncached", "cached", "uncached_batch3", "cached_batch3"}
    assert set(found["ratios"]) == ways | {"cached_batch3_over_uncached_batch3", "cached_batch3_over_cached"}
    assert found["ratios"]["uncached"] == 1 and all(r > 0 for r in found["ratios"].values())
    assert {r["name"] for r in found["rows"]} == ways
    said = capsys.readouterr().out
    assert "prompt of 6 frames, 5 frames" in said and "codes of all ways are equal" in said


@pytest.fixture(scope="module")
def bench():
    return Bench(told())


def test_every_call_without_keys_writes_the_answer(bench):
    assert bench.calls == 5 + 2 and [tuple(a.shape) for a in bench.answers] == [(5, 3)] * 3
    assert bench.anew(3, range(bench.calls)) == pytest.approx(15)
    assert bench.anew(1, [0, 6]) == pytest.approx(5 * 2 / 7)
    assert len({tuple(a.flatten().tolist()) for a in bench.answers}) == 3  # prompts differ


@pytest.mark.parametrize("at, call", [((2, 0), 2), ((1, 1), 5), ((4, 2), 6)])
def test_other_codes_are_an_error(bench, at, call):
    kept = bench.answers[1].clone()
    offset = bench.vocab.code_start + at[1] * 1024
    bench.answers[1][at] = offset + (int(kept[at]) - offset + 1) % 1024
    try:
        with pytest.raises(TttError, match=f"call {call} of answer 1 writes other codes"):
            bench.anew(2, [call])
    finally:
        bench.answers[1] = kept


@pytest.mark.parametrize("options, message", [
    (["--batch", "1"], "--batch: must be >= 2, got 1"), (["--frames", "0"], "--frames: must be >= 1, got 0"),
    (["--dim", "12"], "--dim: must be a multiple of 8 heads, got 12"),
])  # fmt: skip
def test_senseless_sizes(options, message):
    from ttt.bench.valle import run

    made = told(*options)
    made.repeat = 1
    with pytest.raises(ConfigError, match=message):
        run(made)
