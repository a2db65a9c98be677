import pytest
import torch

from tests.conftest import audio, chat, gen, pack, random_streams, text, tiny_model, tiny_tokenizer
from ttt.data.encode import encode_example
from ttt.diffusion.corrupt import draw_times
from ttt.errors import ConfigError
from ttt.masks.materialize import materialize
from ttt.objective.dual_stream import with_copies
from ttt.objective.losses import plan_terms
from ttt.registry.families import OBJECTIVE
from ttt.sampling.decoder.session import Session, next_token
from ttt.types import Kind, LogitsRequest, ModelInputs, Prompt


def dual(block_length=3, **fields):
    clean = {"name": "block_causal", "block_length": block_length} if block_length else {"name": "hybrid"}
    mask = {"name": "dual_stream", "clean": clean}
    return OBJECTIVE.build({"name": "dual_stream", "mask": mask, **fields}, "objective")


def encode(*examples):
    return [encode_example(e, tiny_tokenizer()) for e in examples]


def sample():
    """Words, five codes, words, four codes: spans of 6 and 5 tokens with their ends."""
    answer = [text("the cat"), audio([1, 2, 3, 4, 5]), text("sat"), audio([6, 7, 8, 9], "last")]
    return encode(chat("a", [text("on the mat")], answer))


def logits_of(model, plan):
    shape = plan.input_ids.shape
    inputs = ModelInputs(
        plan.input_ids, plan.position_ids, materialize(plan.mask, plan.layout, model.attention, model.dtype),
        torch.arange(shape[0] * shape[1]),
    )  # fmt: skip
    with torch.no_grad():
        return model(inputs).view(*shape, -1)


def test_copies_keep_positions_and_number_their_blocks():
    batch = pack([sample()])
    maskable = (batch.kind == Kind.AUDIO) & batch.noisable
    wide, group, n = with_copies(batch, maskable, block_length=4, fill=True)
    t = batch.ids.shape[1]
    at = maskable[0].nonzero().flatten().tolist()
    assert len(at) == 11, "six and five: codes and end tokens"
    assert wide.position[0, t:].tolist() == [*at[:6], at[5] + 1, at[5] + 2, *at[6:], at[10] + 1, at[10] + 2, at[10] + 3]
    end, end_last = tiny_tokenizer().vocab.eoa_id, tiny_tokenizer().vocab.eoa_last_id
    assert wide.ids[0, t + 5 : t + 8].tolist() == [end] * 3 and wide.ids[0, t + 12 :].tolist() == [end_last] * 4
    assert group[0, t:].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 and n == 4
    assert (group[0, :t] == -1).all() and torch.equal(wide.ids[:, :t], batch.ids)


def test_truncated_spans_are_not_filled():
    (stream,) = encode(chat("a", [text("on")], [text("the"), audio([1, 2, 3, 4, 5], "last")]))
    (other,) = encode(chat("b", [text("mat")], [text("sat")]))
    batch = pack([[stream.truncate(0, 4), other]])
    _, group, n = with_copies(batch, (batch.kind == Kind.AUDIO) & batch.noisable, block_length=3, fill=True)
    assert int((group >= 0).sum()) == 4 and n == 2


def test_rows_without_audio():
    streams = encode(chat("a", [text("on")], [text("the cat")]))
    plan = dual().plan(pack([streams]), gen())
    assert plan.input_ids.shape == (1, len(streams[0])) and len(plan.terms["nar"].source) == 0
    assert float(plan_terms(tiny_model(), plan).terms["ar"].sum.detach()) > 0


@pytest.mark.parametrize("block_length", [0, 3])
def test_clean_rows_never_learn_of_the_noise(block_length):
    """Logits of the clean sample are those of a forward without any copy: text is trained on exactly what decoding shows."""
    model, batch = tiny_model(), pack([random_streams(3, 2), random_streams(4, 1)])
    objective = dual(block_length)
    plan = objective.plan(batch, gen())
    t = batch.ids.shape[1]
    assert plan.input_ids.shape[1] > t and torch.equal(plan.input_ids[:, :t], batch.ids)
    alone = type(plan)(batch.ids, batch.position, batch.layout(), objective.mask.clean, {})
    both = logits_of(model, plan)[:, :t][batch.visible], logits_of(model, alone)[batch.visible]
    assert torch.allclose(*both, atol=1e-5)


@pytest.mark.parametrize("block_length", [0, 3])
def test_training_shows_exactly_the_states_of_decoding(block_length):
    """For every block of every span: logits of the fully masked noisy block = logits the decoder's session computes for
    masks appended to the clean tokens before the block."""
    model, objective = tiny_model(), dual(block_length)
    (stream,) = sample()
    batch = pack([[stream]])
    wide, group, n = with_copies(batch, objective.maskable(batch), block_length, fill=True)
    plan = objective.plan_copies(wide, group, torch.ones(n), torch.zeros(wide.ids.shape))
    assert (plan.input_ids[group >= 0] == batch.mask_id).all()
    trained = logits_of(model, plan)[0]
    for number in range(n):
        columns = (group[0] == number).nonzero().flatten()
        begin = int(wide.position[0, columns[0]])
        prompt = Prompt("a", stream.ids[:begin].tolist(), noisable=stream.noisable[:begin].tolist())
        for cache in ("none", "exact", "block"):
            session = Session(model, objective.mask, [prompt], cache, room=64)
            tails = torch.full((1, len(columns)), batch.mask_id)
            with torch.no_grad():
                session.run([next_token([0])])  # fills the cache
                places = torch.arange(len(columns))[None]
                (decoded,) = session.run([LogitsRequest(torch.tensor([0]), tails, places, len(columns))])[0]
            assert torch.allclose(trained[columns], decoded, atol=1e-5), f"block {number}"


def test_blocks_have_times_of_their_own():
    batch = pack([random_streams(5, 3)])
    objective = dual(2, times="independent")
    wide, group, n = with_copies(batch, objective.maskable(batch), 2, fill=True)
    t = torch.zeros(n)
    t[1] = 1.0
    plan = objective.plan_copies(wide, group, t, torch.full(wide.ids.shape, 0.5))
    assert torch.equal(plan.input_ids == batch.mask_id, group == 1)
    assert len(plan.terms["nar"].source) == int((group == 1).sum())
    assert plan.terms["nar"].count == batch.n_docs


def test_loss_by_hand():
    """One span of two codes and its end, one block, all masked at t = 1: the mean cross-entropy."""
    model = tiny_model()
    (stream,) = encode(chat("a", [text("on")], [text("the"), audio([1, 2], "last")]))
    batch, objective = pack([[stream]]), dual(3)
    wide, group, n = with_copies(batch, objective.maskable(batch), 3, fill=True)
    plan = objective.plan_copies(wide, group, torch.ones(n), torch.zeros(wide.ids.shape))
    columns = (group[0] >= 0).nonzero().flatten()
    logits = logits_of(model, plan)[0, columns]
    expected = torch.nn.functional.cross_entropy(logits, wide.ids[0, columns])
    term = plan_terms(model, plan).terms["nar"]
    assert float(term.sum.detach() / term.count) == pytest.approx(float(expected), rel=1e-5)


def test_given_draws_are_shared_by_all_blocks_of_a_document():
    batch = pack([sample()])
    objective = dual(2)
    maskable = objective.maskable(batch)
    u = torch.rand(batch.ids.shape, generator=gen(1))
    plan = objective.plan_from(batch, maskable, torch.tensor([0.5]), u)
    masked = (plan.input_ids == batch.mask_id)[0, batch.ids.shape[1] :]
    assert torch.equal(masked, u[maskable] < (1 - 1e-3) * 0.5 + 1e-3)


def test_stratified_times_hit_every_interval_once():
    t = draw_times(64, gen(), "stratified")
    assert sorted((t * 64).long().tolist()) == list(range(64))
    assert not torch.equal(t.sort().values, t)
    assert len(draw_times(0, gen(), "stratified")) == 0
    assert torch.equal(draw_times(5, gen()), torch.rand(5, generator=gen()))
    pairs = draw_times(7, gen(), "antithetic")
    assert torch.allclose(pairs[0:6:2] + pairs[1:6:2], torch.ones(3)) and torch.equal(pairs[::2], draw_times(7, gen())[::2])
    assert float(draw_times(20_000, gen(1), "antithetic").mean()) == pytest.approx(0.5, abs=1e-5)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ConfigError, match=r"'ppm' decides which spans stay clean.*leave it out"):
        dual(strategies=["ppm"])
    dual(strategies=["sst"])
    with pytest.raises(ConfigError, match=r"objective.mask: dual_stream needs the mask dual_stream"):
        OBJECTIVE.build({"name": "dual_stream", "mask": "hybrid"}, "objective")
    with pytest.raises(ConfigError, match="times: no .* Choices: independent, stratified, antithetic"):
        dual(times="both")
