"""Decoding through the one engine: the key cache is exact, rows do not disturb each other, limits hold, calls are counted."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.unit.valle.small_valle import BOOKS, CODES, examples, network, tokenizer
from ttt.data.batches.codec_frames import frames_of
from ttt.data.batches.rows import collate
from ttt.data.encode import encode_example
from ttt.errors import ConfigError, DataError
from ttt.model.valle.network import FrameInputs
from ttt.registry.families import MASK, SAMPLER
from ttt.sampling.decoder.checks import check_prompts
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.types import Example, LogitsRequest, Prompt

PREFIX = MASK.build("prefix", "mask")
V = tokenizer().vocab
SHAPES = [{}, {"positions": "rotary", "continuous_positions": True, "share_tables": True}]


def prompts() -> list[Prompt]:
    made = []
    for e in examples():
        s = encode_example(Example(e.uid, e.turns[:1], e.task), tokenizer(), open_answer=True)
        made.append(Prompt.of(s, e.uid))
    return made


def decoder(net=None, settings=None, sampler="valle", mask=PREFIX, **fields) -> Decoder:
    built = SAMPLER.build({"name": sampler, "max_frames": 9, **fields}, "eval.sampler")
    return Decoder(net or network(), mask, built, DecodeSettings(**{"max_tokens": 200, **(settings or {})}))


def codes(decoder_: Decoder, some=None, batch_size=0) -> list[list]:
    return [g.codes.tolist() for g in decoder_.generate(some or prompts(), batch_size=batch_size)]


def code_request(row, tail, place):
    """The logits at one place of a row's tail i64 [m]."""
    return LogitsRequest(torch.tensor([row]), tail[None], torch.tensor([[place]]), len(tail) - place)


@pytest.mark.parametrize("mask", ["prefix", "causal"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"prepend_bos": False}, {"continuous_positions": True, "norm_first": False}, {"prenet": True},
     {"positions": "rotary"}, {"positions": "rotary", "continuous_positions": True, "prepend_bos": False},
     {"share_tables": True}],
)  # fmt: skip
@torch.no_grad()
def test_cached_logits_are_those_of_one_pass(fields, mask):
    """Step by step, in a batch of prompts of different lengths, and by the training pass: the same to 1e-5."""
    net, rule = network(**fields), MASK.build(mask, "mask")
    rng = np.random.default_rng(3)
    session, slow = (net.session(rule, cache=c, slots=3) for c in ("exact", "none"))
    some = prompts()
    answers = [torch.from_numpy(rng.integers(0, CODES, size=(8, BOOKS))) for _ in some]
    flat = [(a + V.code_start + torch.arange(BOOKS) * CODES).flatten() for a in answers]
    for n, p in enumerate(some):
        session.admit(n, p)
        slow.admit(n, p)
    steps: list[list[torch.Tensor]] = []
    for t in range(8):
        tails = [torch.cat([f[: t * BOOKS], torch.tensor([V.mask_id])]) for f in flat]
        requests = [code_request(n, tail, t * BOOKS) for n, tail in enumerate(tails)]
        steps.append([x[0, 0] for x in session.run(requests)])
        for cached, other in zip(steps[-1], slow.run(requests), strict=True):
            torch.testing.assert_close(cached, other[0, 0], atol=1e-5, rtol=0)
    for n, e in enumerate(examples()):
        prompt = torch.from_numpy(e.turns[0].spans[0].codes).long()[None]
        nll = net(FrameInputs(prompt, torch.tensor([prompt.shape[1]]), answers[n][None], torch.tensor([8]), rule))[
            "ar"
        ].nll
        if not net.arch.prepend_bos:
            nll = nll.roll(1)  # the first code's stands last
        columns = [V.code_start + int(c) for c in answers[n][:, 0]]
        by_steps = torch.stack([-steps[t][n].log_softmax(-1)[columns[t]] for t in range(8)])
        torch.testing.assert_close(by_steps, nll[:8], atol=1e-5, rtol=0)


@torch.no_grad()
def test_codes_that_are_taken_back_are_run_again():
    net = network()
    session = net.session(PREFIX, slots=1)
    session.admit(0, prompts()[0])
    one, two = (torch.tensor([V.code_start + c, V.mask_id, V.mask_id, V.mask_id]) for c in (1, 2))
    first, other, again = (session.run([code_request(0, ids, 3)])[0] for ids in (one, two, one))
    torch.testing.assert_close(first, again, atol=1e-6, rtol=0)
    assert float((first - other).nan_to_num(0.0).abs().max()) > 0.1


@pytest.mark.parametrize("fields", [
    {"temperature": 0.0}, {"temperature": 1.3, "top_k": 5, "nar_temperature": 0.7}, {"chunk_frames": 3},
    {"top_p": 0.8, "repetition_window": 4}, {"chunk_frames": 3, "chunk_prefix": True},
])  # fmt: skip
@pytest.mark.parametrize("shape", SHAPES)
def test_neither_company_nor_cache_changes_an_answer(shape, fields):
    net = network(**shape)
    together = codes(decoder(net, **fields))
    assert together == codes(decoder(net, **fields), batch_size=1) == codes(decoder(net, {"cache": "none"}, **fields))
    assert together == [codes(decoder(net, **fields), [p])[0] for p in prompts()]


def test_calls_are_counted_by_kind():
    for g in decoder(min_frames=2).generate(prompts()):
        steps = len(g.codes) + (g.stopped == "im_end")
        assert g.calls == {"ar": steps, "diffusion": BOOKS - 1}
        assert g.spans[0].codes.shape == (len(g.codes), BOOKS)


def test_limits_are_inclusive_and_min_frames_holds():
    net = network()
    with torch.no_grad():
        net.ar_predict_layer.weight[-1] = 0.0  # hardly ever ends
        net.ar_predict_layer.weight[:-1] *= 3
    long = decoder(net, temperature=0.0, max_frames=6).generate(prompts())
    assert [(len(g.codes), g.stopped) for g in long if g.stopped == "length"] and max(len(g.codes) for g in long) == 6
    assert {
        len(g.codes) for g in decoder(net, {"max_tokens": 13}, temperature=0.0, max_frames=6).generate(prompts())
    } == {4}
    assert min(len(g.codes) for g in decoder(min_frames=7).generate(prompts())) >= 7


def test_streamed_frames_are_the_answer():
    for fields in ({}, {"chunk_frames": 2}):
        d = decoder(min_frames=7, **fields)
        blocks: dict[int, list[int]] = {n: [] for n in range(3)}
        count = 0
        for event in d.events(prompts()):
            blocks[event.row].extend(event.ids)
            count += event.kind == "block"
        assert [V.codes(np.asarray(ids)).tolist() for ids in blocks.values()] == codes(decoder(min_frames=7, **fields))
        assert count == 3 if not fields else count > 6


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_earlier_chunks_join_the_prompt_of_the_nar_decoder(shape):
    net = network(**shape)
    fields = {"temperature": 0.0, "min_frames": 9, "chunk_frames": 4}
    (made,) = decoder(net, chunk_prefix=True, **fields).generate(prompts()[:1])
    heard = torch.from_numpy(examples()[0].turns[0].spans[0].codes).long()
    answer = torch.from_numpy(made.codes).long()
    assert answer.shape == (9, BOOKS)
    for begin, stop in ((0, 4), (4, 8), (8, 9)):
        prompt, target = torch.cat([heard, answer[:begin]])[None], answer[None, begin:stop]
        for stage in range(1, BOOKS):
            hidden = net.nar_hidden(
                prompt, torch.tensor([prompt.shape[1]]), target, torch.tensor([stop - begin]), stage
            )
            assert net.nar_logits(hidden, stage)[0].argmax(-1).tolist() == target[0, :, stage].tolist()
    sure: list[list[tuple[int, float]]] = [[], []]  # place and score of upper codebooks
    for joined in (False, True):
        for _ in decoder(net, chunk_prefix=joined, **fields).events(
            prompts()[:1],
            lambda row, at, ids, score, into=sure[joined]: into.extend(zip(at.tolist(), score.tolist(), strict=True)),
        ):
            pass
    apart, together = ({at: s for at, s in some if at % BOOKS} for some in sure)
    later = [at for at in apart if abs(apart[at] - together[at]) > 1e-5]
    assert later and min(later) >= 4 * BOOKS and len(later) > 4  # the first chunk has nothing before it


def test_a_code_that_repeats_too_much_is_drawn_again():
    """Top-k leaves one code; once it fills too much of the window, all codes are drawn from."""
    logits = torch.tensor([0.5, 1.0, 0.0, -torch.inf])
    plain, aware = (
        SAMPLER.build({"name": "valle", "top_k": 1, "repetition_window": w, "repetition_share": 0.5}, "s")
        for w in (0, 4)
    )
    for past, free in (([1, 1, 0, 0, 2, 1], False), ([0, 1, 0, 1, 1, 1], True)):
        for sampler in (plain, aware):
            drawn = {sampler._choose(logits, past, [3], torch.Generator().manual_seed(n)) for n in range(40)}
            assert drawn == ({0, 1, 2} if free and sampler is aware else {1})
    assert (
        aware._choose(torch.tensor([0.0, 1.0, 0.0, 2.0]), [1] * 4, [3], torch.Generator()) == 3
    )  # the end is the likeliest


@pytest.mark.parametrize("nar, fields", [("masked", {}), ("masked_all", {"first_codebook": "masked"})])
def test_masked_books_are_filled_coarse_to_fine(nar, fields):
    net = network(nar=nar)
    heard: list[tuple[int, int]] = []
    d = decoder(net, sampler="valle_masked", min_frames=4, steps_total=6, **fields)
    for _ in d.events(
        prompts()[:1],
        on_commit=lambda row, at, ids, score: heard.extend((int(a), int(i)) for a, i in zip(at, ids, strict=True)),
    ):
        pass
    (made,) = decoder(net, sampler="valle_masked", min_frames=4, steps_total=6, **fields).generate(prompts()[:1])
    assert made.codes.shape[1] == BOOKS and (made.codes < CODES).all() and made.calls["diffusion"] <= 6
    places = [a for a, _ in heard]
    assert sorted(places) == list(range(made.codes.size))  # every code once
    assert made.codes.flatten().tolist() == [(i - V.code_start) % CODES for _, i in sorted(heard)]
    order: list[int] = []
    strict = decoder(
        net, sampler="valle_masked", min_frames=4, steps_total=6, codebook_weights=[1.0, 1e-15, 1e-30], **fields
    )
    for _ in strict.events(
        prompts()[:1], on_commit=lambda row, at, ids, score: order.extend(sorted(int(a) % BOOKS for a in at))
    ):
        pass
    upper = [b for b in order if b or nar == "masked_all"]
    assert upper == sorted(upper)  # weights that far apart settle one codebook after another


def test_a_hole_is_filled_and_what_is_known_stays():
    net, rng = network(nar="masked_all"), np.random.default_rng(5)
    known = V.code_ids(rng.integers(0, CODES, (4, BOOKS)).astype(np.int32)).tolist()
    some = [dataclasses.replace(p, known=[*[V.mask_id] * (n * BOOKS), *known]) for n, p in enumerate(prompts(), 2)]
    d = decoder(net, sampler="valle_masked", first_codebook="masked", steps_total=3)
    for n, g in enumerate(d.generate(some), 2):
        assert len(g.codes) == n + 4 and g.codes[n:].tolist() == V.codes(np.asarray(known)).tolist()
        assert g.calls == {"ar": 0, "diffusion": min(3, n * BOOKS)}
    other = [
        dataclasses.replace(p, known=[*p.known[:-BOOKS], *known[:BOOKS]]) for p in some
    ]  # the last frame is another
    sure: list[list[float]] = [[], []]
    for heard, asked in zip(sure, (some, other), strict=True):
        for _ in d.events(asked, on_commit=lambda row, at, ids, score, heard=heard: heard.extend(score.tolist())):
            pass
    assert len(sure[0]) == len(sure[1]) == 9 * BOOKS and sure[0] != pytest.approx(
        sure[1], abs=1e-6
    )  # both sides are heard
    with pytest.raises(ConfigError, match="holes are filled by valle_masked"):
        codes(decoder(), some)


@pytest.mark.parametrize("name", SAMPLER.names())
def test_a_sampler_that_fills_no_holes_says_so(name):
    """What a prompt knows of its answer would else be left out without a word."""
    sampler = SAMPLER.build(name, "eval.sampler")
    known = dataclasses.replace(prompts()[0], known=[V.mask_id])
    with pytest.raises(ConfigError, match="holes are filled by valle_masked with first_codebook=masked"):
        check_prompts(network(), [known], sampler, 512)


def test_prompts_without_audio_and_foreign_samplers_are_refused():
    with pytest.raises(DataError, match="holds no audio"):
        codes(decoder(), [Prompt("silent", [V.im_start_id])])
    foreign = SAMPLER.build({"name": "blockwise", "canvas": "answer"}, "eval.sampler")
    with pytest.raises(ConfigError, match="choose its own sampler"):
        codes(Decoder(network(), PREFIX, foreign, DecodeSettings(max_tokens=60)))
    with pytest.raises(ConfigError, match="lets answers look ahead"):
        codes(decoder(mask=MASK.build("full", "mask")))


@torch.no_grad()
def test_upper_books_are_those_of_the_training_pass():
    """Greedy upper codebooks maximise the training pass' probability, codebook by codebook."""
    net = network()
    (made,) = decoder(net, temperature=0.0, min_frames=5).generate(prompts()[:1])
    example = examples()[0]
    whole = Example(
        "x",
        (
            example.turns[0],
            dataclasses.replace(
                example.turns[1], spans=(dataclasses.replace(example.turns[1].spans[0], codes=made.codes),)
            ),
        ),
    )
    f = frames_of(collate([[encode_example(whole, tokenizer())]], 500, V.pad_id, V.mask_id, V.code_space))
    for stage in (1, 2):
        hidden = net.nar_hidden(f.prompt, f.prompt_lens, f.target, f.target_lens, stage)
        assert net.nar_logits(hidden, stage)[0].argmax(-1).tolist() == made.codes[:, stage].tolist()
