"""Optimiser files: what one number of ranks wrote, any other reads."""

from __future__ import annotations

import pytest
import torch

from ttt.errors import CheckpointError
from ttt.train.engines.optimizer_state import Moments, write_record, write_share, write_whole

NAMES = ["a.weight", "b"]
OPTIMIZER = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
FULL = {"a.weight": torch.arange(21.0).view(3, 7), "b": torch.arange(100.0, 105.0)}


def written(folder, ranks: int):
    """The moments of `FULL` cut over ``ranks`` flat shares, as ZeRO cuts them: in the middle of a parameter if need be."""
    flat = torch.cat([v.flatten() for v in FULL.values()])
    edges = [len(flat) * r // ranks for r in range(ranks + 1)]
    for rank in range(ranks):
        tensors, starts, begin = {}, {}, 0
        for name, value in FULL.items():
            low, high = max(begin, edges[rank]), min(begin + value.numel(), edges[rank + 1])
            if low < high:
                tensors[f"exp_avg/{name}"] = flat[low:high].clone()
                tensors[f"step/{name}"] = torch.tensor(3.0)
                starts[name] = low - begin
            begin += value.numel()
        write_share(folder, rank, ranks, tensors, starts)
    write_record(folder, OPTIMIZER, [{"parameters": NAMES, "weight_decay": 0.0}])
    return Moments(folder, OPTIMIZER, NAMES)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shares_are_read_in_any_cut(tmp_path, ranks):
    stored = written(tmp_path, ranks)
    assert stored.moments == {"a.weight": ["exp_avg"], "b": ["exp_avg"]}
    for name, value in FULL.items():
        assert torch.equal(stored.whole("exp_avg", name, value), value)
        assert float(stored.step(name)) == 3.0
        for start in range(value.numel()):
            for number in range(1, value.numel() - start + 1):
                assert torch.equal(stored.read("exp_avg", name, start, number), value.flatten()[start : start + number])


def test_whole_files_keep_shapes_that_are_not_the_parameters(tmp_path):
    write_whole(tmp_path, {"row/a.weight": torch.ones(3), "exp_avg/b": FULL["b"], "step/b": torch.tensor(1.0)})
    write_record(tmp_path, OPTIMIZER, [{"parameters": NAMES, "weight_decay": 0.0}])
    stored = Moments(tmp_path, OPTIMIZER, NAMES)
    assert stored.whole("row", "a.weight", FULL["a.weight"]).shape == (3,)
    assert torch.equal(stored.read("exp_avg", "b", 1, 3), FULL["b"][1:4])
    assert stored.step("a.weight") is None


def test_a_missing_file_and_another_optimizer_are_named(tmp_path):
    written(tmp_path, 3)
    (tmp_path / "optimizer-00001-of-00003.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"exp_avg/a.weight is not all there \(\d+ of 21 numbers\); files are missing"
    ):
        Moments(tmp_path, OPTIMIZER, NAMES).whole("exp_avg", "a.weight", FULL["a.weight"])
    with pytest.raises(CheckpointError, match="the state is of adamw, this run has sgd"):
        Moments(tmp_path, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1), NAMES)
    with pytest.raises(CheckpointError, match=r"of other parameters \(1 differ, first 'c'\)"):
        Moments(tmp_path, OPTIMIZER, [*NAMES, "c"])
