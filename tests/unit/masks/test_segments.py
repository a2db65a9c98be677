import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tests.conftest import pack, random_batch, random_streams, tiny_hf, tiny_tokenizer
from ttt.errors import ConfigError, DataError
from ttt.masks.library import BlockCausal, Causal, DualStream, Full, Hybrid, Prefix
from ttt.masks.materialize import block_mask, carry, dense, materialize
from ttt.masks.segments import Segments, segments
from ttt.model.backbone import compile_layers
from ttt.model.lm import SpeechTextLM
from ttt.model.packed_attention import attend, register
from ttt.objective.library import TtT
from ttt.objective.losses import plan_terms
from ttt.registry.families import MASK, NOISE, OBJECTIVE, WEIGHTING
from ttt.rng import generator
from ttt.types import ModelInputs

RULES = [
    Causal(), Full(), Hybrid(), Hybrid(bidirectional_prompt_audio=False), BlockCausal(1), BlockCausal(3),
    DualStream(BlockCausal(4)), DualStream(Hybrid()), Prefix(),
]  # fmt: skip
each_rule = pytest.mark.parametrize("rule", RULES, ids=str)
register()


def model(attention):
    return SpeechTextLM(tiny_hf(attention=attention), tiny_tokenizer())


def unfolded(mask: Segments):
    """The tiles as a dense mask [B, T, T] over the original places."""
    rows, columns = mask.shape
    out = torch.zeros((rows, columns, columns), dtype=torch.bool)
    at = 0
    for group in mask.groups:
        here = mask.order[at : at + sum(t.queries for t in group)]
        start = 0
        for tile in group:
            q, k = here[start : start + tile.queries], here[tile.keys]
            seen = torch.ones(len(q), len(k), dtype=torch.bool) if tile.bias is None else tile.bias[0, 0] == 0
            for i, one in enumerate(q.tolist()):
                for other in k[seen[i]].tolist():
                    assert other // columns == one // columns, "a row looks at another"
                    out[one // columns, one % columns, other % columns] = True
            start += tile.queries
        at += len(here)
    return out


@each_rule
@pytest.mark.parametrize("tile", [7, 16, 1000])
def test_tiles_are_the_dense_mask(rule, tile):
    layout = random_batch(3).layout()
    found = unfolded(segments(rule, layout, torch.float32, tile))
    want = dense(rule, layout) & (layout.visible & (layout.doc >= 0))[:, :, None]
    assert torch.equal(found, want)


def test_every_registered_rule_is_covered():
    assert {type(r) for r in RULES} == {e.cls for e in MASK.entries()}


def plans():
    """Plans over packed rows with padding: in place and with noisy copies, blocks or whole spans."""
    batch = random_batch(5)
    for name, mask in (("ttt", Hybrid()), ("ttt", Prefix()), ("ar", Causal()), ("nar", Full()),
                       ("dual_stream", DualStream(BlockCausal(4))), ("dual_stream", DualStream(Hybrid()))):  # fmt: skip
        objective = OBJECTIVE.build({"name": name, "strategies": []}, "test")
        objective = type(objective)(**{**vars(objective), "mask": mask})
        yield name, mask, objective.plan(batch, generator(0, "t"))


def outcome(network, plan):
    network.zero_grad()
    found = plan_terms(network, plan)
    total = sum(t.scale * t.sum / max(t.count, 1) for t in found.terms.values())
    total.backward()
    return float(total.detach()), [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_attention_trains_like_dense_attention(checkpointing):
    plain, ours = model("sdpa"), model("packed")
    if checkpointing:
        ours.hf.activation_checkpointing_enable()
        ours.train()
    for name, mask, plan in plans():
        (loss, grads), (other, others) = outcome(plain, plan), outcome(ours, plan)
        assert loss == pytest.approx(other, rel=1e-5), (name, mask)
        for a, b in zip(grads, others, strict=True):
            assert float((a - b).norm()) <= 1e-4 * float(b.norm()) + 1e-7, (name, mask)


def test_packed_documents_have_the_loss_of_documents_alone():
    streams = random_streams(2, 6)
    network, objective = (
        model("packed"),
        TtT(Hybrid(), NOISE.build("linear", "t"), WEIGHTING.build("inverse_p", "t"), ()),
    )
    together = pack([streams[:4], streams[4:]])
    t, u = torch.rand(6, generator=generator(1, "t")), torch.rand(together.ids.shape, generator=generator(1, "u"))
    whole = plan_terms(network, objective.plan_from(together, objective.maskable(together), t, u)).terms
    sums = dict.fromkeys(whole, 0.0)
    for i, stream in enumerate(streams):
        alone = pack([[stream]])
        draw = u[together.doc == i][None]
        for name, term in plan_terms(
            network, objective.plan_from(alone, objective.maskable(alone), t[i : i + 1], draw)
        ).terms.items():
            sums[name] += float(term.sum.detach())
    for name, term in whole.items():
        assert float(term.sum.detach()) == pytest.approx(sums[name], rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_other_backbones_hand_the_mask_down(kind):
    batch = random_batch(1)
    at = batch.visible.flatten().nonzero().flatten()
    found = []
    for attention in ("sdpa", "packed"):
        network = SpeechTextLM(tiny_hf(kind, attention=attention), tiny_tokenizer())
        mask = materialize(Hybrid(), batch.layout(), attention, torch.float32)
        found.append(network(ModelInputs(batch.ids, batch.position, mask, at)))
    assert torch.allclose(*found, atol=1e-4)


def test_hidden_states_stand_where_they_stood():
    batch = random_batch(1)
    layout = batch.layout()
    plain = model("sdpa").hidden(batch.ids, batch.position, carry(dense(Hybrid(), layout), "sdpa", torch.float32))
    ours = model("auto").hidden(batch.ids, batch.position, segments(Hybrid(), layout, torch.float32))
    assert torch.allclose(plain[batch.visible], ours[batch.visible], atol=1e-4)
    assert not ours[~batch.visible].any()


def test_bfloat16_stays_close():
    batch = random_batch(1)
    at = batch.visible.flatten().nonzero().flatten()
    mask = materialize(Hybrid(), batch.layout(), "packed", torch.float32)
    network = model("packed")
    exact = network(ModelInputs(batch.ids, batch.position, mask, at))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(ModelInputs(batch.ids, batch.position, mask, at))
    assert float(((rough - exact).norm() / exact.norm()).detach()) < 0.05


def test_padding_has_no_logits():
    batch = random_batch(1)
    hole = (~batch.visible).flatten().nonzero()[0]
    mask = materialize(Hybrid(), batch.layout(), "packed", torch.float32)
    columns = batch.ids.shape[1]
    with pytest.raises(DataError, match=f"row {int(hole) // columns}, column {int(hole) % columns} is padding"):
        model("packed")(ModelInputs(batch.ids, batch.position, mask, hole))


def test_work_grows_with_documents_not_with_rows():
    streams = random_streams(4, 24)
    few, many = (segments(Causal(), pack([streams[:n]]).layout(), torch.float32, 16) for n in (6, 24))
    assert many.cells < 8 * few.cells, "four times the documents cost about four times, not sixteen"
    n = len(many.order)
    assert many.cells < n * n / 8
    long = pack([[random_streams(9, 1, max_codes=400)[0]]])
    one = segments(Causal(), long.layout(), torch.float32, 16)
    assert one.cells < 0.6 * len(one.order) ** 2, "what a causal document does not see is not computed"


@each_rule
def test_block_masks_are_torchs_own(rule, monkeypatch):
    streams = random_streams(3, 40)
    batch = pack([streams[:24], streams[24:34], streams[34:]])
    layout = batch.layout()
    b, t = layout.shape
    assert t > 256 and t % 128
    want = create_block_mask(rule.allow(layout), b, None, t, t, device="cpu")
    for chunk in (1 << 24, 1):
        monkeypatch.setattr("ttt.masks.materialize._CHUNK_CELLS", chunk)
        ours = block_mask(rule, layout)
        assert ours.shape == want.shape
        assert torch.equal(ours.to_dense(), want.to_dense())
        assert torch.equal(ours.kv_num_blocks, want.kv_num_blocks)
        assert torch.equal(ours.full_kv_num_blocks, want.full_kv_num_blocks)


def test_flex_attention_under_a_block_mask_is_dense_attention():
    streams = random_streams(3, 12)
    layout = pack([streams[:6], streams[6:]]).layout()
    b, t = layout.shape
    q, k, v = (torch.randn(b, 2, t, 16, generator=generator(i, "qkv")) for i in range(3))
    with pytest.warns(UserWarning, match="without torch.compile"):
        found = flex_attention(q, k, v, block_mask=block_mask(Hybrid(), layout))
    want = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=carry(dense(Hybrid(), layout), "sdpa", torch.float32)
    )
    real = layout.visible[:, None, :, None].expand_as(found)
    assert torch.allclose(found[real], want[real], atol=1e-5)


def test_the_mask_goes_by_device_and_use():
    layout = random_batch(1).layout()
    assert isinstance(materialize(Hybrid(), layout, "auto", torch.float32), Segments)
    assert isinstance(materialize(Hybrid(), layout, "packed", torch.float32), Segments)
    one = materialize(Hybrid(), layout, "auto", torch.float32, queries=torch.zeros(3, 1, dtype=torch.long))
    assert isinstance(one, torch.Tensor) and one.shape[2] == 1, "decoding asks for single queries: always a tensor"


def test_attention_that_packed_rows_cannot_compute_is_refused():
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(
        ConfigError, match="'softcap', which packed attention cannot compute; use model.attention=eager"
    ):
        attend(torch.nn.Module(), q, q, q, None, softcap=30.0)


def test_a_backbone_that_drops_the_mask_does_not_go_unnoticed():
    q = torch.zeros(1, 2, 3, 4)
    nothing = torch.zeros((1, 1, 0, 0), dtype=torch.bool)  # what stands in for the mask of packed rows
    with pytest.raises(RuntimeError):
        attend(torch.nn.Module(), q, q, q, nothing)


def test_compiled_layers_keep_their_names_and_leave_attention_alone():
    network = model("packed")
    names = list(network.state_dict())
    assert compile_layers(network.hf) == 2 * 3, "two norms and the feed-forward part of each layer"
    assert list(network.state_dict()) == names
    layer = network.hf.get_decoder().layers[0]
    assert layer.mlp._compiled_call_impl is not None and layer.self_attn._compiled_call_impl is None


def test_backbones_that_scale_logits_are_refused():
    from types import SimpleNamespace

    from ttt.model.backbone import _refuse_scaled_logits

    for fields in ({"final_logit_softcapping": 30.0}, {"logit_scale": 0.0625}, {"logits_scaling": 8.0}):
        with pytest.raises(
            ConfigError, match=f"gemma2 changes its logits behind the output layer .{next(iter(fields))}"
        ):
            _refuse_scaled_logits(SimpleNamespace(model_type="gemma2", **fields))
    _refuse_scaled_logits(SimpleNamespace(model_type="gemma3", final_logit_softcapping=None, logits_scaling=1.0))
