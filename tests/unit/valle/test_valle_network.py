"""The network against the specification: masks, targets, embeddings, stages, its folder."""

import pytest
import torch

from tests.unit.valle.small_valle import BOOKS, CODES, batch, network
from ttt.data.batches.codec_frames import frames_of
from ttt.errors import CheckpointError, ConfigError
from ttt.model.arch import open_network
from ttt.model.causal_lm import load_lm
from ttt.model.valle.blocks import AdaptiveNorm, Block, SinePositions, Stack, rotations, turned
from ttt.model.valle.network import FrameInputs, _scores
from ttt.model.valle.targets import ar_inputs_labels, ar_targets
from ttt.registry.families import MASK

PREFIX = MASK.build("prefix", "mask")


def inputs(frames=None, **fields) -> FrameInputs:
    f = frames or frames_of(batch())
    return FrameInputs(f.prompt, f.prompt_lens, f.target, f.target_lens, **{"rule": PREFIX, **fields})


def test_mask_of_the_specification():
    net = network(prepend_bos=False)
    mask = net.ar_mask(PREFIX, torch.tensor([3]), torch.tensor([3]), 3, 3)[0, 0]
    blocked = [[0, 0, 0, 1, 1, 1]] * 3 + [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1], [0] * 6]
    assert (~mask).int().tolist() == blocked


def test_targets_of_the_specification():
    codes, lens = torch.tensor([[3, 7, 0]]), torch.tensor([2])
    assert ar_targets(codes, lens, 10).tolist() == [[3, 7, 10, 10]]
    got, labels = ar_inputs_labels(codes, lens, 10, bos=True, eos="padding")
    assert (got.tolist(), labels.tolist()) == ([[11, 3, 7, 10]], [[3, 7, 10, 10]])
    got, labels = ar_inputs_labels(codes, lens, 10, bos=False, eos="padding")
    assert (got.tolist(), labels.tolist()) == ([[3, 7, 10]], [[7, 10, 10]])
    assert ar_inputs_labels(codes, lens, 10, bos=True)[1].tolist() == [[3, 7, 10, -100]]


def test_block_is_torchs_encoder_layer():
    """The same numbers as `nn.TransformerEncoderLayer` with the same weights, both orders of norms."""
    for first in (True, False):
        torch.manual_seed(1)
        mine = Block(16, 2, 0.0, first, adaptive=False).eval()
        other = torch.nn.TransformerEncoderLayer(16, 2, 64, 0.0, "relu", batch_first=True, norm_first=first).eval()
        names = {
            "self_attn.in_proj_": "attention_in.", "self_attn.out_proj.": "attention_out.", "linear1.": "up.",
            "linear2.": "down.", "norm1.": "norm1.", "norm2.": "norm2.",
        }  # fmt: skip
        own = mine.state_dict()
        other.load_state_dict({
            theirs + part: own[ours + part] for theirs, ours in names.items() for part in ("weight", "bias")
        })  # fmt: skip
        x = torch.randn(2, 5, 16)
        mask = torch.ones(5, 5, dtype=torch.bool).tril()
        torch.testing.assert_close(
            mine(x, mask[None, None], None, None)[0], other(x, src_mask=~mask), atol=1e-5, rtol=0
        )


def test_a_stage_steers_every_norm_of_the_nar_decoder():
    """w * (x - mean) / sqrt(var + 1e-5) + b, with (w, b) linear in the stage's vector; it begins as a plain norm."""
    norm, x, stage = AdaptiveNorm(4), torch.randn(2, 3, 4), torch.randn(4)
    w, b = (norm.project.weight @ stage + norm.project.bias).split(4)
    plain = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x, stage), w * plain + b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm(x, torch.zeros(4)), plain, atol=1e-5, rtol=1e-5)
    net = network(nar_scale_factor=2.0)
    norms = [m for m in net.nar_decoder.modules() if isinstance(m, AdaptiveNorm)]
    assert len(norms) == 2 * 4 + 1 and not [m for m in net.ar_decoder.modules() if isinstance(m, AdaptiveNorm)]
    assert (net.arch.nar_dim, net.arch.nar_heads, net.arch.nar_layers) == (32, 4, 4)


def test_a_hit_is_a_code_among_the_ten_likeliest():
    torch.manual_seed(3)
    logits, wanted = torch.randn(200, 40), torch.randint(0, 40, (200,))
    found = _scores(logits, wanted, torch.zeros(200), torch.zeros(200), 39)
    assert found.hit.tolist() == [
        int(w) in row.topk(10).indices.tolist() for row, w in zip(logits, wanted, strict=True)
    ]
    assert found.end.tolist() == (wanted == 39).tolist() and 20 < int(found.hit.sum()) < 90


def test_prenet_is_a_small_network_a_frame():
    """D -> 256 -> 256 -> D, ReLU and dropout 0.25 behind the first two; one for each of prompt and target of each decoder."""
    net = network(prenet=True)
    for name in ("ar_prompt_prenet", "ar_audio_prenet", "nar_prompt_prenet", "nar_audio_prenet"):
        layers = list(getattr(net, name))
        sizes = [(m.in_features, m.out_features) for m in layers if isinstance(m, torch.nn.Linear)]
        assert sizes == [(16, 256), (256, 256), (256, 16)]
        assert [type(m).__name__ for m in layers] == ["Linear", "ReLU", "Dropout"] * 2 + ["Linear"] and layers[
            2
        ].p == 0.25
    assert not list(network().ar_prompt_prenet.parameters())


def test_positions_are_sines_and_cosines_times_alpha():
    p = SinePositions(4, 0.0, trained=True).eval()
    with torch.no_grad():
        p.alpha.fill_(2.0)
    made = p(torch.zeros(1, 3, 4), torch.arange(3))[0, 2]
    wanted = 2 * torch.tensor([2.0, 2.0, 0.02, 0.02])
    wanted = 2 * torch.stack(
        [wanted[0].div(2).sin(), wanted[0].div(2).cos(), torch.tensor(0.02).sin(), torch.tensor(0.02).cos()]
    )
    torch.testing.assert_close(made, wanted)
    assert not [n for n, _ in SinePositions(4, 0.0, trained=False).named_parameters()]


def test_positions_of_late_frames_do_not_depend_on_the_weights_type():
    wide, narrow = (
        SinePositions(64, 0.0, trained=True).eval().to(d)(torch.zeros(1, 1, 64, dtype=d), torch.tensor([777]))
        for d in (torch.float32, torch.bfloat16)
    )
    torch.testing.assert_close(narrow.float(), wide, atol=5e-3, rtol=0)


@torch.no_grad()
def test_rotary_positions_count_distances_alone():
    """RoFormer: what a position makes of the others depends on how far they are, and on nothing else."""
    torch.manual_seed(2)
    x, at = torch.randn(2, 6, 16), torch.arange(6)
    turning, plain = (Stack(2, 16, 2, 0.0, True, adaptive=False, rotary_base=b).eval() for b in (100.0, 0.0))
    plain.load_state_dict(turning.state_dict())
    here, shifted, stretched = (turning(x, p)[0] for p in (at, at + 40, 2 * at))
    torch.testing.assert_close(here, shifted, atol=1e-4, rtol=0)
    assert float((here - stretched).abs().max()) > 0.05 < float((here - plain(x, at)[0]).abs().max())
    rows = torch.stack([at, at + 7])  # a row of its own positions each
    torch.testing.assert_close(turning(x, rows)[0], here, atol=1e-4, rtol=0)


@torch.no_grad()
def test_rotary_positions_are_a_product_with_a_turned_pair():
    """(q at m) . (k at n) is the real part of q conj(k) exp(i (m - n) rate), summed over pairs (i, i + d / 2)."""
    torch.manual_seed(3)
    q, k = torch.randn(2, 1, 1, 1, 8).unbind(0)
    m, n, base = 5, 2, 50.0
    mine = (
        turned(q, rotations(torch.tensor([m]), 8, base, q.dtype))
        * turned(k, rotations(torch.tensor([n]), 8, base, k.dtype))
    ).sum()
    a, b = (torch.complex(v.flatten()[:4], v.flatten()[4:]) for v in (q, k))
    rates = torch.tensor([base ** (-2 * i / 8) for i in range(4)])
    torch.testing.assert_close(mine, (a * b.conj() * torch.exp(1j * (m - n) * rates)).real.sum())


@pytest.mark.parametrize("fields", [
    {"positions": "rotary"}, {"positions": "rotary", "continuous_positions": True, "rotary_base": 100.0},
    {}, {"norm_first": False}, {"prenet": True}, {"continuous_positions": True}, {"prepend_bos": False},
    {"nar_prompt_sees_target": True}, {"nar_scale_factor": 2.0}, {"share_tables": True},
])  # fmt: skip
def test_padding_and_company_change_no_score(fields):
    """Each recording alone gives what it gives in the batch."""
    net = network(**fields)
    f = frames_of(batch())
    both = net(inputs(f, stages=(1, 2)))
    for d in range(3):
        s, t = int(f.prompt_lens[d]), int(f.target_lens[d])
        alone = net(FrameInputs(
            f.prompt[d : d + 1, :s], f.prompt_lens[d : d + 1], f.target[d : d + 1, :t], f.target_lens[d : d + 1], PREFIX,
            stages=(1, 2),
        ))  # fmt: skip
        for name in ("ar", "nar"):
            mine = both[name].nll[both[name].row == d]
            torch.testing.assert_close(mine, alone[name].nll, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("form", ["stages", "masked", "masked_all"])
def test_shared_tables_read_prompt_and_target_alike(form):
    """With the target's tables a prompt frame is the sum of what the target's own frames are; without, it is something else."""
    codes = torch.tensor([[[3, 7, 1]]])
    shared, own = network(nar=form, share_tables=True), network(nar=form)

    def seen(net) -> tuple[torch.Tensor, torch.Tensor]:
        """What the NAR decoder is handed of a prompt of one frame and of a target of the same, sines taken off."""
        found = []
        net.nar_decoder.register_forward_pre_hook(lambda _, given: found.append(given[0][0]))
        one = torch.ones(1, dtype=torch.long)
        masked = None if form == "stages" else torch.zeros(1, 1, BOOKS, dtype=torch.bool)
        net.nar_hidden(codes, one, codes, one, 0 if masked is not None else BOOKS - 1, masked)
        return found[0][0], found[0][1]

    prompt, target = seen(shared)
    if form == "stages":  # the last codebook is only predicted, so the prompt's has a table of its own
        target = target + shared.nar_prompt_embeddings[0].weight[1]
    torch.testing.assert_close(prompt, target)
    assert float((seen(own)[0] - seen(own)[1]).abs().max()) > 0.1
    assert sum(p.numel() for p in shared.parameters()) < sum(p.numel() for p in own.parameters())
    if form == "masked_all":
        return
    codebooks = [shared.ar_audio_embedding, *shared.ar_prompt_embeddings]
    wanted = sum(table.weight[c] for table, c in zip(codebooks, codes[0, 0].tolist(), strict=True))
    sines = shared.ar_prompt_position(torch.zeros(1, 1, 16), torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(shared.ar_prompt(codes)[0, 0], wanted + sines[0, 0])


def test_tables_that_prompts_read_are_used_in_every_update():
    """What a micro-batch may leave out are the parts of single codebooks; with shared tables the prompts read them all."""
    own, shared = network().drawn_parameters, network(share_tables=True).drawn_parameters
    assert own - shared == {"nar_audio_embeddings.1.weight"} and shared < own
    net = network(share_tables=True)
    net(inputs(frames_of(batch()), stages=(1,)))["nar"].nll.sum().backward()
    unused = {n for n, p in net.named_parameters() if n.startswith("nar_") and p.grad is None}
    assert unused and unused <= shared


@pytest.mark.parametrize("bos", [True, False])
def test_first_book_is_causal_behind_the_prompt(bos):
    net = network(prepend_bos=bos)
    f = frames_of(batch(sizes=((5, 7),)))
    before = net(inputs(f, stages=(1,)))["ar"].nll
    f.target[0, 4, 0] = (f.target[0, 4, 0] + 1) % CODES
    after = net(inputs(f, stages=(1,)))["ar"].nll
    # With BOS prediction i is of code i.  Without, i is of code i + 1 and the first code's stands last.
    changed = ((before - after).abs() > 1e-6).tolist()
    assert changed == ([False] * 4 + [True] * 4 if bos else [False] * 3 + [True] * 4 + [False])


def test_every_code_and_one_end_is_learned_once():
    f = frames_of(batch())
    for bos in (True, False):
        scores = network(prepend_bos=bos)(inputs(f))["ar"]
        assert len(scores.nll) == 7 + 3 + 9 + 3 and int(scores.end.sum()) == 3
        fork = network(prepend_bos=bos)(inputs(f, eos="padding", first_code=False))["ar"]
        assert len(fork.nll) == 3 * (10 if bos else 9)


def test_stage_reads_the_books_below_it_only():
    net = network()
    f = frames_of(batch(sizes=((5, 7),)))
    before = {s: net(inputs(f, ar=False, stages=(s,)))["nar"].nll for s in (1, 2)}
    f.target[0, 3, 1] = (f.target[0, 3, 1] + 1) % CODES
    after = {s: net(inputs(f, ar=False, stages=(s,)))["nar"].nll for s in (1, 2)}
    assert ((before[1] - after[1]).abs() > 1e-6).nonzero().flatten().tolist() == [3]  # its own label, nothing else
    assert ((before[2] - after[2]).abs() > 1e-6).sum() > 4  # an input


@pytest.mark.parametrize("sees", [False, True])
def test_the_nar_prompt_sees_the_target_or_not(sees):
    net = network(nar_prompt_sees_target=sees)
    mask = net._nar_mask(torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool))[0, 0]
    assert mask.int().tolist() == ([[1] * 4] * 4 if sees else [[1, 1, 0, 0]] * 2 + [[1] * 4] * 2)


def test_masked_codes_are_not_read():
    net = network(nar="masked_all")
    f = frames_of(batch(sizes=((5, 7),)))
    hidden = torch.zeros(1, 7, BOOKS, dtype=torch.bool)
    hidden[0, 2, 1] = hidden[0, 5, 0] = True
    before = net(inputs(f, ar=False, hidden=hidden))["nar"]
    assert before.codebook.tolist() == [0, 1] and not hasattr(net, "ar_decoder")
    f.target[0, 2, 1] = (f.target[0, 2, 1] + 1) % CODES
    after = net(inputs(f, ar=False, hidden=hidden))["nar"]
    one, two = (before.nll - after.nll).tolist()
    assert one != 0.0 or two != 0.0
    assert (one, two)[before.codebook.tolist().index(0)] == 0.0  # the other masked code does not see it


def test_names_of_parameters_tell_the_stages():
    for name, _ in network(prenet=True, nar_scale_factor=2.0).named_parameters():
        assert name.startswith(("ar_", "nar_")), name


def test_shared_tables_are_one_parameter():
    net = network(share_embeddings=True)
    assert net.nar_predict_layers[0].weight is net.nar_audio_embeddings[1].weight
    assert net.nar_predict_layers[1].weight is net.nar_audio_embeddings[2].weight


@pytest.mark.parametrize(
    "fields", [{}, {"share_embeddings": True}, {"nar": "masked"}, {"prenet": True, "norm_first": False}]
)
def test_folder_round_trip(tmp_path, fields):
    net = network(**fields)
    net.save(tmp_path)
    again = open_network(tmp_path)
    assert not again.training  # whoever asks it, for answers or for statistics, asks it without dropout
    assert again.arch == net.arch and again.num_ids == net.num_ids
    for (name, a), (_, b) in zip(net.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(CheckpointError, match="architecture 'valle'; this works with 'causal_lm'"):
        load_lm(tmp_path)
    with pytest.raises(CheckpointError, match="weights of another model"):
        network(dim=32).load_weights(tmp_path)


def test_settings_of_causal_models_are_refused():
    from ttt.config.schema import ModelSection

    with pytest.raises(ConfigError, match="model.preset: belongs to model.arch=causal_lm"):
        network().arch.start(ModelSection(preset="toy"), network().tokenizer, 0)
    with pytest.raises(ConfigError, match="objective.mask: 'hybrid' lets answers look ahead"):
        network()(inputs(rule=MASK.build("hybrid", "mask")))
