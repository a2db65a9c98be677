"""Likelihoods never hold the logits of all masked positions: what is held does not grow with draws or with their positions."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tests.conftest import gen, tiny_model
from ttt.likelihood import Draws, Part, masked_nll, patterns
from ttt.likelihood.scoring import columns_of, position_nll
from ttt.masks.library import Full
from ttt.textbench.bound import bound_scores
from ttt.textbench.texts import Pair, vocabulary
from ttt.types import Columns, Kind, TokenStream, audio_runs

ROWS = 4  # of a chunk
PAIRS = [Pair((5, 6, 7 + i), tuple(range(20, 32))) for i in range(3)]


class Largest(TorchDispatchMode):
    """Bytes of the largest storage that any operation wrote, parameters apart."""

    def __init__(self, model) -> None:
        super().__init__()
        self.known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_flatten(out)[0]:
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr("ttt.model.cross_entropy.chunk_rows", lambda vocab, device: ROWS)
    return tiny_model(seed=3).eval()


def whole_answer(n: int) -> Part:
    ids = np.arange(5, 8 + n)
    kind = np.full(len(ids), Kind.TEXT, dtype=np.uint8)
    target = np.arange(len(ids)) >= 3
    return Part(TokenStream("x", ids, kind, audio_runs(kind), target, target), np.flatnonzero(target), n)


def largest(model, draws: int, budget: int, cfg_scale: float = 0.0) -> int:
    part = whole_answer(12)
    masks = patterns(12, Draws(draws), gen(1)).masked
    with Largest(model) as seen:
        masked_nll(model, Full(), [part], [masks], budget, cfg_scale)
    return seen.bytes


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_no_tensor_grows_with_the_draws(model, cfg_scale):
    assert largest(model, 8, 60, cfg_scale) == largest(model, 128, 60, cfg_scale)


def test_no_tensor_has_a_row_for_every_masked_position(model):
    """With room for 40 rows of 15 in a call there are some 260 masked positions; logits of four are held."""
    vocab, width = model.num_ids, 48  # of the widest layer
    positions = 600
    held = largest(model, 64, positions)
    rows = patterns(12, Draws(64), gen(1)).counts.sum() * 40 // 64
    # What is left to hold: a chunk of logits, all states, the mask of 40 rows.
    assert held <= 4 * max(ROWS * vocab, positions * width, 40 * 4 * 15 * 15) < 4 * rows * vocab


def test_the_harness_holds_no_more(model):
    allowed = vocabulary(model.tokenizer, model.num_ids, "text")
    sizes = []
    for draws in (4, 64):
        with Largest(model) as seen:
            bound_scores(model, Full(), PAIRS, allowed, 45, Draws(draws), 1)
        sizes.append(seen.bytes)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("which", ["all", "holes", "sets"])
def test_chunks_equal_the_whole(model, which):
    """Against one softmax over all logits with the ids that are not allowed at minus infinity."""
    states = torch.randn((11, 32), generator=gen(2))
    v, n = model.num_ids, 11
    may, columns = torch.ones((n, v), dtype=torch.bool), None
    if which == "holes":
        may[:, [0, 7, 8, v - 1]] = False
        columns = columns_of(may[0], n)
        assert columns.sets == (((1, 7), (9, v - 1)),)
    if which == "sets":  # not in the order of ids, as ends of spans are
        columns = Columns(torch.tensor([0, -1, 1] * 4)[:n], (((100, 130), (3, 5)), ((200, 230),)))
        for row, number in enumerate(columns.index.tolist()):
            if number >= 0:
                may[row] = False
                for start, stop in columns.sets[number]:
                    may[row, start:stop] = True
    targets = np.array([int(row.nonzero()[i]) for i, row in enumerate(may)])
    targets[6] = 8 if which == "holes" else 2 if which == "sets" else targets[6]
    with torch.no_grad():
        wanted = -model.head(states).masked_fill(~may, -math.inf).double().log_softmax(-1)
    wanted = wanted[torch.arange(n), torch.from_numpy(targets)].numpy()
    assert np.isinf(wanted).sum() == (which != "all")
    for rows in (1, 3, 100):
        assert position_nll(model, states, targets, columns, rows) == pytest.approx(wanted, rel=1e-5)


def test_two_restrictions_are_refused(model):
    from ttt.diffusion.constraints import FramePosition

    part, allowed = whole_answer(3), torch.ones(model.num_ids, dtype=torch.bool)
    with pytest.raises(ValueError, match="cannot both say"):
        masked_nll(model, Full(), [part], [np.ones((1, 3), bool)], 60, allowed=allowed, constraint=FramePosition())
