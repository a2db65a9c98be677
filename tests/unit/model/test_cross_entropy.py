import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ttt.model import cross_entropy
from ttt.model.cross_entropy import chunk_rows, chunked_nll, chunked_scores, is_plain
from ttt.types import Columns


def problem(n=23, d=6, v=37, dtype=torch.float64, bias=False, seed=0):
    gen = torch.Generator().manual_seed(seed)
    head = nn.Linear(d, v, bias=bias, dtype=dtype)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=gen, dtype=dtype))
    hidden = torch.randn(n, d, generator=gen, dtype=dtype).requires_grad_()
    targets = torch.randint(v, (n,), generator=gen)
    weight = torch.rand(n, generator=gen)
    return head, hidden, targets, weight


def gradients(value, head, hidden):
    return [g.clone() for g in torch.autograd.grad(value, [hidden, *head.parameters()])]


class Wrapped(nn.Module):
    """What adapters do: a module around the layer."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 23, 100])
@pytest.mark.parametrize("wrap", [False, True])
def test_equals_the_plain_way(bias, rows, wrap):
    head, hidden, targets, weight = problem(bias=bias)
    plain = F.cross_entropy(head(hidden), targets, reduction="none")
    ours = chunked_nll(Wrapped(head) if wrap else head, hidden, targets, weight, rows)
    assert ours.dtype == torch.float64 and torch.allclose(ours, plain, rtol=1e-12)
    for factor in (weight.double(), 0.25 * weight.double(), torch.arange(23.0).double()):  # as told, scaled, others
        plain = F.cross_entropy(head(hidden), targets, reduction="none")
        ours = chunked_nll(Wrapped(head) if wrap else head, hidden, targets, weight, rows)
        want = gradients((plain * factor).sum(), head, hidden)
        for a, b in zip(gradients((ours * factor).sum(), head, hidden), want, strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-12)


def test_float32_gradients_agree_to_1e_5():
    head, hidden, targets, weight = problem(300, 64, 1000, torch.float32)
    plain = gradients((F.cross_entropy(head(hidden), targets, reduction="none") * weight).sum(), head, hidden)
    ours = gradients((chunked_nll(head, hidden, targets, weight, 64) * weight).sum(), head, hidden)
    for a, b in zip(ours, plain, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5


@pytest.mark.parametrize("told", [True, False])
def test_gradcheck(told):
    head, hidden, targets, _ = problem(7, 3, 11, bias=True)
    weight = torch.ones(7) if told else torch.arange(7.0)
    names = [n for n, _ in head.named_parameters()]

    def run(h, *parameters):
        layer = nn.Linear(3, 11, dtype=torch.float64)
        for name, p in zip(names, parameters, strict=True):
            layer._parameters[name] = nn.Parameter(p.detach())
        # gradients by the tensors gradcheck moves, so through the function itself
        groups = [(None, None)]
        return cross_entropy._ChunkedNll.apply(h, *parameters, targets, weight, 3, torch.float64, True, groups, False)[
            0
        ]

    assert torch.autograd.gradcheck(run, (hidden, *head.parameters()), eps=1e-6, atol=1e-7)


def test_gradients_are_made_in_the_forward_pass_only_if_the_factors_agree(monkeypatch):
    calls = []
    run = cross_entropy._run
    monkeypatch.setattr(cross_entropy, "_run", lambda *a: calls.append(a[4]) or run(*a))
    head, hidden, targets, weight = problem()
    (chunked_nll(head, hidden, targets, weight) * weight * 3).sum().backward()
    assert len(calls) == 1 and calls[0] is weight
    chunked_nll(head, hidden, targets, weight).sum().backward()
    assert len(calls) == 3, "other factors: computed anew"
    with torch.no_grad():
        chunked_nll(head, hidden, targets, weight)
    assert calls[-1] is None, "no gradients where none are asked for"


def test_a_second_backward_pass_is_right_too():
    head, hidden, targets, weight = problem()
    total = (chunked_nll(head, hidden, targets, weight) * weight).sum()
    first, second = (
        torch.autograd.grad(total, [hidden, head.weight], retain_graph=True, create_graph=False) for _ in range(2)
    )
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(first, second, strict=True))


def test_tied_rows_get_both_gradients():
    table = nn.Embedding(37, 6)
    head = nn.Linear(6, 37, bias=False)
    head.weight = table.weight
    ids, targets = torch.arange(20), torch.arange(20) + 1
    found = []
    for way in (
        lambda h: F.cross_entropy(head(h), targets, reduction="none"),
        lambda h: chunked_nll(head, h, targets, None, 7),
    ):
        table.weight.grad = None
        way(torch.tanh(table(ids))).sum().backward()
        found.append(table.weight.grad.clone())
    assert torch.allclose(*found, rtol=1e-5, atol=1e-6)


def test_frozen_head_and_empty_input():
    head, hidden, targets, weight = problem(dtype=torch.float32)
    head.requires_grad_(False)
    (chunked_nll(head, hidden, targets, weight) * weight).sum().backward()
    assert hidden.grad is not None and head.weight.grad is None
    assert chunked_nll(head, hidden[:0], targets[:0]).shape == (0,)


def test_bfloat16_weights_and_autocast():
    head, hidden, targets, weight = problem(200, 32, 500, torch.float32)
    exact = gradients((chunked_nll(head, hidden, targets, weight, 64) * weight).sum(), head, hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = chunked_nll(head, hidden, targets, weight, 64)
        plain = F.cross_entropy(head(hidden).float(), targets, reduction="none")
    assert ours.dtype == torch.float32 and torch.allclose(ours, plain, atol=1e-3)
    for a, b in zip(gradients((ours * weight).sum(), head, hidden), exact, strict=True):
        assert a.dtype == torch.float32 and float((a - b).norm() / b.norm()) < 2e-2
    half, h = head.bfloat16(), hidden.detach().bfloat16().requires_grad_()
    found = torch.autograd.grad((chunked_nll(half, h, targets, weight, 64) * weight).sum(), [h, half.weight])
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.bfloat16 and float((a.float() - b).norm() / b.norm()) < 2e-2


def test_what_counts_as_a_plain_layer():
    head = nn.Linear(4, 5)
    assert is_plain(head) and not is_plain(Wrapped(head))
    head.weight.ds_id = 3  # how DeepSpeed marks a sharded parameter
    assert not is_plain(head)
    hooked = nn.Linear(4, 5)
    seen = []
    hooked.register_forward_pre_hook(lambda *a: seen.append(1))
    chunked_nll(hooked, torch.randn(3, 4), torch.tensor([0, 1, 2]))
    assert seen, "hooks are called: sharding engines gather weights in them"


def test_chunks_keep_within_their_budget():
    rows = chunk_rows(168_072, torch.device("cpu"))
    assert rows == cross_entropy.LEAST_ROWS and chunk_rows(1000, torch.device("cpu")) * 4000 <= 1 << 24
    assert chunk_rows(0, torch.device("cpu")) == 64


SETS = (((3, 9),), ((20, 29), (0, 2)), ((30, 31),))


def slow_nll(head, hidden, targets, index):
    """One row at a time, everything outside its set at minus infinity."""
    out, hits = [], []
    for h, t, n in zip(hidden, targets, index.tolist(), strict=True):
        logits = head(h)
        if n >= 0:
            inside = torch.zeros_like(logits, dtype=torch.bool)
            for start, stop in SETS[n]:
                inside[start:stop] = True
            logits = logits.masked_fill(~inside, -torch.inf)
        out.append(F.cross_entropy(logits[None], t[None], reduction="none"))
        hits.append(int(logits.argmax()) == int(t))
    return torch.cat(out), torch.tensor(hits)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_softmax_over_some_ids_equals_masking_the_others(wrap, bias, rows):
    head, hidden, _, weight = problem(bias=bias)
    g = torch.Generator().manual_seed(3)
    index = torch.randint(-1, 3, (len(hidden),), generator=g)
    inside = [[i for a, b in s for i in range(a, b)] for s in SETS] + [list(range(head.out_features))]
    targets = torch.tensor([inside[n][int(torch.randint(len(inside[n]), (), generator=g))] for n in index.tolist()])
    columns = Columns(index, SETS)
    plain, hits = slow_nll(head, hidden, targets, index)
    layer = Wrapped(head) if wrap else head
    ours, found = chunked_scores(layer, hidden, targets, weight, rows, columns)
    assert torch.allclose(ours, plain, rtol=1e-12) and torch.equal(found, hits) and 0 < hits.sum() < len(hits)
    for factor in (weight.double(), torch.arange(float(len(hidden)), dtype=torch.float64)):
        want = gradients((slow_nll(head, hidden, targets, index)[0] * factor).sum(), head, hidden)
        ours = chunked_nll(layer, hidden, targets, weight, rows, columns)
        for a, b in zip(gradients((ours * factor).sum(), head, hidden), want, strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-12)
    assert torch.equal(
        chunked_nll(layer, hidden, targets, weight, rows, columns),
        chunked_scores(layer, hidden, targets, weight, rows, columns)[0],
    )
