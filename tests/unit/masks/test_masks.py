from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from tests.conftest import layout_of, pack, random_batch, random_streams, tiny_hf
from ttt.errors import ConfigError
from ttt.masks.draw import mask_text
from ttt.masks.library import BlockCausal, Causal, DualStream, Full, Hybrid, Prefix
from ttt.masks.materialize import carry, dense, materialize
from ttt.types import Kind, Layout

RULES = [
    Causal(), Full(), Hybrid(), Hybrid(bidirectional_prompt_audio=False), BlockCausal(1), BlockCausal(3),
    DualStream(BlockCausal(4)), DualStream(Hybrid()), Prefix(),
]  # fmt: skip
IDS = [5, 6, 101, 102, 191, 7, 103, 191, 8]
each_rule = pytest.mark.parametrize("rule", RULES, ids=str)


def non_causal(allowed):
    return {(int(q), int(k)) for q, k in allowed[0].nonzero() if k > q}


def test_vector_of_the_spec():
    layout = layout_of(IDS)
    assert (layout.kind[0] == Kind.AUDIO).long().tolist() == [0, 0, 1, 1, 1, 0, 1, 1, 0]
    assert layout.run_id[0].tolist() == [1, 2, 2, 2, 2, 3, 3, 3, 4]
    allowed = dense(Hybrid(), layout)
    assert non_causal(allowed) == {(2, 3), (2, 4), (3, 4), (6, 7)}
    assert all(allowed[0, q, k] for q in range(9) for k in range(q + 1))
    masked = [190 if i == 102 else i for i in IDS]
    assert torch.equal(dense(Hybrid(), layout_of(masked)), allowed)
    clean_prompt = dense(Hybrid(bidirectional_prompt_audio=False), layout_of(IDS, prompt_length=5))
    assert non_causal(clean_prompt) == {(6, 7)}


def slow(rule, layout, b, q, k):
    """The rules of the spec, cell by cell."""
    if isinstance(rule, DualStream):  # a layout without a copy
        return slow(rule.clean, layout, b, q, k)
    x = {f.name: getattr(layout, f.name)[b] for f in fields(layout)}
    if x["doc"][q] != x["doc"][k] or not x["visible"][k]:
        return False
    if isinstance(rule, Full) or k <= q:
        return True
    if isinstance(rule, Causal):
        return False
    if isinstance(rule, Prefix):
        return all(bool(x["prompt"][i]) and x["doc"][i] == x["doc"][q] for i in range(q, k + 1))
    between = range(q, k + 1)
    audio = all(x["kind"][i] == Kind.AUDIO for i in between)
    if isinstance(rule, BlockCausal):
        begin = q
        while begin and x["kind"][begin - 1] == Kind.AUDIO and x["doc"][begin - 1] == x["doc"][q]:
            begin -= 1
        return audio and bool(x["prompt"][q] or (q - begin) // rule.block_length == (k - begin) // rule.block_length)
    return audio and (rule.bidirectional_prompt_audio or not (x["prompt"][q] or x["prompt"][k]))


@each_rule
@pytest.mark.parametrize("seed", range(2))
def test_against_a_slow_twin(rule, seed):
    s = random_streams(seed, 4, 5)
    layout = pack([s[:2], s[2:]]).layout()
    allowed = dense(rule, layout)
    b_size, t_size = layout.shape
    for b in range(b_size):
        for q in range(t_size):
            assert allowed[b, q].tolist() == [slow(rule, layout, b, q, k) for k in range(t_size)]


@each_rule
def test_packing_leaks_nothing(rule):
    s = random_streams(4, 3)
    packed = dense(rule, pack([s]).layout())[0]
    at = 0
    for stream in s:
        inside = slice(at, at + len(stream))
        alone = dense(rule, pack([[stream]]).layout())[0]
        assert torch.equal(packed[inside, inside], alone)
        assert packed[inside].sum() == alone.sum(), "nothing outside the document"
        at += len(stream)


@each_rule
def test_one_predicate_for_flex_attention(rule):
    from torch.nn.attention.flex_attention import create_mask

    layout = random_batch(1).layout()
    b, t = layout.shape
    flex = create_mask(rule.allow(layout), b, None, t, t, device="cpu")
    assert torch.equal(flex.expand(b, 1, t, t)[:, 0], dense(rule, layout))


def test_flex_attention_gets_a_block_mask():
    from torch.nn.attention.flex_attention import BlockMask

    layout = random_batch(1).layout()
    assert isinstance(materialize(Hybrid(), layout, "flex_attention", torch.float32), BlockMask)


@each_rule
def test_some_query_columns(rule):
    layout = random_batch(2).layout()
    queries = torch.tensor([[0, 3], [5, 5], [2, 1]])
    some = dense(rule, layout, queries)
    assert torch.equal(some, dense(rule, layout).gather(1, queries[..., None].expand(-1, -1, layout.shape[1])))


def hidden(hf, batch, mask):
    with torch.no_grad():
        return hf.get_decoder()(
            input_ids=batch.ids, position_ids=batch.position, attention_mask=mask, use_cache=False
        ).last_hidden_state


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("rule", RULES[:3], ids=str)
def test_carriers_agree(kind, rule):
    batch = random_batch(3)
    results = []
    for implementation in ("sdpa", "eager"):
        mask = materialize(rule, batch.layout(), implementation, torch.float32)
        assert mask.dtype == (torch.bool if implementation == "sdpa" else torch.float32)
        results.append(hidden(tiny_hf(kind, attention=implementation), batch, mask))
    assert torch.isfinite(results[0]).all() and torch.isfinite(results[1]).all(), "padding rows see themselves: no NaN"
    # 1e-5: two orders of float32 summation over at most 150 keys.
    assert torch.allclose(results[0][batch.visible], results[1][batch.visible], atol=1e-5)


def test_a_bool_mask_is_not_what_eager_takes():
    """Why materialize exists: eager attention adds whatever it gets, so a bool mask would not block a thing."""
    batch, hf = random_batch(3), tiny_hf("qwen2", attention="eager")
    good = hidden(hf, batch, materialize(Causal(), batch.layout(), "eager", torch.float32))
    wrong = hidden(hf, batch, materialize(Causal(), batch.layout(), "sdpa", torch.float32))
    assert not torch.allclose(good[batch.visible], wrong[batch.visible], atol=1e-2)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@each_rule
def test_gradient_reaches_exactly_the_allowed_keys(kind, rule):
    hf = tiny_hf(kind, layers=1)
    batch = pack([random_streams(6, 2, 5)])
    layout = batch.layout()
    allowed = dense(rule, layout)[0]
    embedded = hf.get_input_embeddings()(batch.ids).detach().requires_grad_()
    out = hf.get_decoder()(
        inputs_embeds=embedded, position_ids=batch.position, use_cache=False,
        attention_mask=materialize(rule, layout, "sdpa", torch.float32),
    ).last_hidden_state[0]  # fmt: skip
    probe = torch.randn(out.shape[-1], generator=torch.Generator().manual_seed(0))
    for q in range(len(out)):
        (gradient,) = torch.autograd.grad(out[q] @ probe, embedded, retain_graph=True)
        assert torch.equal(gradient[0].abs().sum(-1) > 0, allowed[q]), f"query {q}"


def extended(layout: Layout, kinds: torch.Tensor) -> Layout:
    """The layout with columns ``kinds`` [B, m] appended right behind each row's visible part (what the decoder does)."""
    b_size, t_size = layout.shape
    new = kinds.shape[1]
    grown = {
        f.name: torch.cat([getattr(layout, f.name), getattr(layout, f.name).new_zeros(b_size, new)], 1)
        for f in fields(layout)
    }
    length = layout.visible.sum(1)
    at = length[:, None] + torch.arange(new)
    grown["kind"].scatter_(1, at, kinds.to(grown["kind"]))
    grown["visible"].scatter_(1, at, torch.ones_like(kinds, dtype=torch.bool))
    grown["prompt"].scatter_(1, at, torch.zeros_like(kinds, dtype=torch.bool))  # what is appended is never prompt
    grown["run_id"] = torch.cumsum(grown["kind"] != Kind.AUDIO, 1)
    grown["position"] = torch.arange(t_size + new).expand(b_size, -1)
    return Layout(**grown)


@each_rule
@pytest.mark.parametrize("seed", range(25))
def test_frozen_positions_never_see_what_comes_later(rule, seed):
    g = torch.Generator().manual_seed(seed)
    b, t, new = 4, 12, 5
    length = torch.randint(1, t + 1, (b,), generator=g)
    visible = torch.arange(t) < length[:, None]
    kind = torch.where(torch.rand(b, t, generator=g) < 0.6, int(Kind.AUDIO), int(Kind.TEXT)).to(torch.uint8)
    kind = torch.where(visible, kind, torch.tensor(int(Kind.TEXT), dtype=torch.uint8))
    prompt = torch.arange(t) < torch.randint(0, t, (b, 1), generator=g)
    layout = Layout(
        kind=kind, run_id=torch.cumsum(kind != Kind.AUDIO, 1), doc=torch.zeros(b, t, dtype=torch.long),
        position=torch.arange(t).expand(b, t), prompt=prompt, visible=visible, stream=torch.zeros(b, t, dtype=torch.long),
    )  # fmt: skip
    closed = torch.rand(b, generator=g) < 0.5
    frozen = rule.frozen_prefix(layout, closed)
    assert (frozen >= 0).all() and (frozen <= length).all()
    if isinstance(rule, Causal):
        assert torch.equal(frozen, length)
    now = dense(rule, layout)
    for _ in range(8):
        kinds = torch.where(torch.rand(b, new, generator=g) < 0.6, int(Kind.AUDIO), int(Kind.TEXT))
        kinds[closed, 0] = int(Kind.TEXT)
        later = dense(rule, extended(layout, kinds))
        for row in range(b):
            n, m = int(frozen[row]), int(length[row])
            assert not later[row, :n, m : m + new].any()
            assert torch.equal(later[row, :n, :m], now[row, :n, :m])


def test_hybrid_freezes_as_much_as_it_can():
    layout = layout_of(IDS[:5])
    yes, no = torch.tensor([True]), torch.tensor([False])
    assert Hybrid().frozen_prefix(layout, no).tolist() == [2] and Hybrid().frozen_prefix(layout, yes).tolist() == [5]
    assert Hybrid().frozen_prefix(layout_of(IDS), no).tolist() == [9]
    assert Full().frozen_prefix(layout, yes).tolist() == [0]
    empty = replace(layout, visible=torch.zeros_like(layout.visible))
    assert Hybrid().frozen_prefix(empty, no).tolist() == [0]


def test_hybrid_equals_transformers_own_blockwise_mask():
    """`create_causal_mask(block_sequence_ids=...)` is built for the same kind of mask: an independent implementation."""
    from transformers.masking_utils import create_causal_mask

    layout = layout_of(IDS)
    audio = layout.kind == Kind.AUDIO
    theirs = create_causal_mask(
        tiny_hf("qwen2").config, torch.zeros(1, len(IDS), 32), None, past_key_values=None, position_ids=None,
        block_sequence_ids=torch.where(audio, layout.run_id, -1),
    )  # fmt: skip
    assert torch.equal(theirs[:, 0], dense(Hybrid(), layout))


def test_empty_rows_see_themselves_only():
    allowed = torch.zeros(1, 3, 3, dtype=torch.bool)
    allowed[0, 1, 0] = True
    assert carry(allowed, "sdpa", torch.float32)[0, 0].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    added = carry(allowed, "eager", torch.float32)[0, 0]
    assert added[0, 0] == 0 and added[0, 1] == torch.finfo(torch.float32).min


def test_attention_without_custom_masks_is_refused():
    with pytest.raises(ConfigError, match="model.attention: 'flash_attention_2' cannot take a custom mask; use auto, packed, sdpa"):
        materialize(Hybrid(), layout_of(IDS), "flash_attention_2", torch.float32)


def test_mask_as_text():
    layout = layout_of(IDS[:5])
    drawn = mask_text(dense(Hybrid(), layout)[0], layout.kind[0].numpy()).splitlines()
    assert drawn == ["  ttaaa", "t #....", "t ##...", "a #####", "a #####", "a #####"]
    long = layout_of([5] * 200)
    assert len(mask_text(dense(Causal(), long)[0], np.ones(200)).splitlines()) == 65


@pytest.mark.parametrize("block_length", [0, 3])
def test_dual_stream_cell_by_cell(block_length):
    """Text 0-1, audio 2-6, text 7, audio 8-9, and a copy of both spans; every pair of positions by the definition."""
    kinds = "ttaaaaataa" + "aaaaa" + "aa"
    origin = [*range(10), 2, 3, 4, 5, 6, 8, 9]
    noisy = [i >= 10 for i in range(17)]
    span_of = {**dict.fromkeys(range(2, 7), "first"), **dict.fromkeys(range(8, 10), "second")}
    start_of = {"first": 2, "second": 8}
    kind = torch.tensor([[int(Kind.AUDIO) if c == "a" else int(Kind.TEXT) for c in kinds]], dtype=torch.uint8)
    runs = torch.cumsum(kind[:, :10] != Kind.AUDIO, 1)
    at = torch.tensor([origin])
    layout = Layout(
        kind=kind, run_id=runs.gather(1, at), doc=torch.zeros_like(at), position=at, prompt=torch.zeros_like(at).bool(),
        visible=torch.ones_like(at).bool(), stream=torch.tensor([noisy]).to(torch.uint8),
    )  # fmt: skip
    rule = DualStream(BlockCausal(block_length) if block_length else Hybrid())
    allowed = dense(rule, layout)[0]

    def block(i):
        span = span_of.get(origin[i])
        if span is None:
            return None
        return span, (origin[i] - start_of[span]) // block_length if block_length else 0

    for q in range(17):
        for k in range(17):
            if not noisy[q]:
                expected = not noisy[k] and (k <= q or (block(q) is not None and block(q) == block(k)))
            elif noisy[k]:
                expected = block(q) == block(k)
            else:
                first = start_of[block(q)[0]] + block(q)[1] * block_length
                expected = origin[k] < first
            assert bool(allowed[q, k]) == expected, (q, k)


def test_block_causal_freezes_settled_blocks():
    yes, no = torch.tensor([True]), torch.tensor([False])
    rule = BlockCausal(2)
    assert rule.frozen_prefix(layout_of(IDS[:5]), no).tolist() == [4], "three codes: one block is settled, one is open"
    assert rule.frozen_prefix(layout_of(IDS[:4]), no).tolist() == [4]
    assert rule.frozen_prefix(layout_of(IDS[:5]), yes).tolist() == [5]
    with pytest.raises(ValueError, match="block_length: must be >= 1, got 0"):
        BlockCausal(0)


def test_prefix_by_hand():
    layout = layout_of(IDS, prompt_length=4)
    assert non_causal(dense(Prefix(), layout)) == {(q, k) for q in range(4) for k in range(q + 1, 4)}
    assert torch.equal(dense(Prefix(), layout_of(IDS)), dense(Causal(), layout_of(IDS))), "no prompt: causal"
    assert Prefix().frozen_prefix(layout, torch.tensor([False])).tolist() == [9]


def test_prefix_of_a_dialogue_never_shows_a_later_turn():
    layout = replace(layout_of(IDS), prompt=torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0, 0]]).bool())
    assert non_causal(dense(Prefix(), layout)) == {(0, 1), (4, 5), (4, 6), (5, 6)}
