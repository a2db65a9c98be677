"""The session: what its cache keeps, which positions run, which rows share a network call; none of it changes a token."""

from dataclasses import fields

import pytest
import torch

from tests.conftest import gen, layout_of, tiny_model, tiny_tokenizer
from ttt.masks.library import BlockCausal, Causal, DualStream, Full, Hybrid, Prefix
from ttt.masks.materialize import dense
from ttt.registry.families import SAMPLER
from ttt.sampling.decoder import session as sessions
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.decoder.session import Session, next_token
from ttt.sampling.samplers.length import Budget, Fixed, UntilEoa
from ttt.types import LogitsRequest, Prompt

V = tiny_tokenizer().vocab
SMALL = {
    "block_length": 4, "gen_length": 12, "diffusion_steps": 6, "num_iterations": 3, "initial_length": 5,
    "length_increment": 3, "temperature": 0.0, "threshold": 0.3, "max_frames": 8, "steps_total": 4,
}  # fmt: skip
MASKS = {
    "causal": Causal(), "full": Full(), "prefix": Prefix(), "hybrid": Hybrid(),
    "causal prompt audio": Hybrid(bidirectional_prompt_audio=False), "block_causal": BlockCausal(4),
    "dual_stream": DualStream(clean=BlockCausal(4)), "other blocks": BlockCausal(3),
}  # fmt: skip
BLOCKS = ("block_causal", "dual_stream")


def prompts(n=5):
    """Lengths 4, 8, 6, 11, 5, ...; every second user speaks."""
    made = []
    for i in range(n):
        speech = [V.soa_id, *range(V.code_start, V.code_start + 3 + i), V.user_end_id] if i % 2 else []
        made.append(Prompt(f"p{i}", [V.im_start_id, 5 + i, *speech, *range(7, 9 + i // 2), 6][: 11 + i]))
    return made


def talker(seed=0, kind="qwen2"):
    return tiny_model(
        kind, seed=seed, bias={V.soa_id: 3.0, V.soa_last_id: 2.5, V.im_end_id: 2.0, V.eoa_id: 1.5, V.eoa_last_id: 1.5}
    )


def decoder(name="blockwise", mask=None, model=None, s=None, **settings):
    known = {f.name for f in fields(SAMPLER.get(name))}
    made = {**SMALL, **(s or {})}
    sampler = SAMPLER.build({"name": name, **{k: v for k, v in made.items() if k in known}}, "s")
    return Decoder(model or talker(), mask or Hybrid(), sampler, DecodeSettings(**{"max_tokens": 18, **settings}))


def ids_of(d, some, batch_size=0):
    return [g.ids for g in d.generate(some, batch_size=batch_size)]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", SAMPLER.names())
def test_caches_batches_and_company_change_no_token(name, mask):
    """Uncached and alone; cached with fewer slots than prompts; other orders; blocks kept where that is exact."""
    some, rule = prompts(4), MASKS[mask]
    plain = [ids_of(decoder(name, rule, cache="none"), [p])[0] for p in some]
    assert any(set(i) & {V.soa_id, V.soa_last_id} for i in plain), "the comparison must see spans"
    exact = decoder(name, rule, cache="exact")
    assert ids_of(exact, some, batch_size=2) == plain
    assert ids_of(exact, some[::-1], batch_size=3) == plain[::-1]
    if mask in BLOCKS and name in ("blockwise", "threshold", "first_hitting"):
        assert ids_of(decoder(name, rule, cache="block"), some, batch_size=2) == plain


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mask", ["hybrid", "block_causal"])
def test_caches_and_batches_change_no_token_whatever_the_weights_and_lengths(mask, seed):
    """Weights and lengths of prompts are drawn; spoken parts of prompts begin anywhere."""
    drawn, rule, model = gen(100 + seed), MASKS[mask], talker(10 + seed)

    def number(low, high):
        return int(torch.randint(low, high, (), generator=drawn))

    some = []
    for i in range(3):
        spoken = [V.soa_id, *(number(V.code_start, V.code_stop) for _ in range(number(1, 30))), V.user_end_id]
        text = [[number(5, 60) for _ in range(number(0, 25))] for _ in range(2)]
        some.append(Prompt(f"r{i}", [V.im_start_id, *text[0], *(spoken if number(0, 2) else ()), *text[1], 6]))
    plain = [ids_of(decoder(mask=rule, model=model, cache="none"), [p])[0] for p in some]
    assert any(set(i) & {V.soa_id, V.soa_last_id} for i in plain), "the comparison must see spans"
    assert ids_of(decoder(mask=rule, model=model, cache="exact"), some, batch_size=2) == plain
    if mask in BLOCKS:
        assert ids_of(decoder(mask=rule, model=model, cache="block"), some, batch_size=3) == plain


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_every_backbone(kind, strict):
    some, model = prompts(3), talker(1, kind)
    plain = [ids_of(decoder(model=model, cache="none", strict=strict), [p])[0] for p in some]
    assert ids_of(decoder(model=model, strict=strict), some, batch_size=2) == plain


@pytest.mark.parametrize("length", [UntilEoa(5), Fixed(6), Budget(3, 9)], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_draws_do_not_depend_on_company_or_slots(length, temperature):
    d = decoder("threshold", s={"temperature": temperature}, temperature=temperature, length=length)
    assert ids_of(d, prompts(), batch_size=2) == [ids_of(d, [p])[0] for p in prompts()]


def test_events_of_rows_that_come_and_go():
    """Rows are numbered like the prompts; nothing follows an end; a waiting prompt starts when another one ends."""
    d, some = decoder(), prompts(6)
    got, ended, seen = [[] for _ in some], [], set()
    for event in d.events(some, batch_size=2):
        assert event.row not in ended
        seen.add(event.row)
        assert len(seen) - len(ended) <= 2
        got[event.row] += event.ids
        if event.kind == "end":
            ended.append(event.row)
    assert [tuple(i) for i in got] == ids_of(d, some) and sorted(ended) == list(range(6))


def test_calls_serve_text_and_blocks_together():
    """Rows do not wait for each other: fewer network calls than one row after another, or text and spans apart."""
    d, some = decoder(max_tokens=40), prompts(4)
    forwards = []
    run = sessions.Session.run

    def counted(self, requests):
        forwards.append({bool(r.tails.shape[1]) for r in requests})
        return run(self, requests)

    sessions.Session.run = counted
    try:
        made = d.generate(some)
    finally:
        sessions.Session.run = run
    assert any(len(kinds) == 2 for kinds in forwards)
    assert len(forwards) < sum(d.calls.values()) < sum(sum(g.calls.values()) for g in made)
    # Nobody waits but for rows of its own block: hardly more than the longest answer alone takes.
    assert len(forwards) <= 1.2 * max(sum(g.calls.values()) for g in made)
    assert sum(g.seconds for g in made) > 0 and all(g.seconds > 0 for g in made)


def test_a_guided_step_is_one_forward():
    d = decoder(s={"cfg_scale": 1.0}, max_tokens=30)
    forwards = []
    inner = d.model.hidden_of_rows
    d.model.hidden_of_rows = lambda call: forwards.append(len(call.ids)) or inner(call)
    d.generate(prompts(1))
    assert len(forwards) == sum(d.calls.values()) and forwards.count(2) == d.calls["diffusion"] > 0


def positions_run(cache, mask):
    """(calls of a span's second block, how many positions each of them ran)."""
    model = tiny_model(bias={V.soa_id: 9.0, V.eoa_id: -50.0})
    d = decoder(mask=mask, model=model, cache=cache, max_tokens=60)
    ran = []
    inner = d.model.hidden_of_rows

    def watched(call):
        ids = call.input_ids
        ran.append((len(ids), int((ids == V.mask_id).sum())))
        return inner(call)

    d.model.hidden_of_rows = watched
    events = d.events(prompts(1))
    blocks = 0
    for event in events:
        if event.kind == "block":
            blocks += 1
            if blocks == 1:
                ran.clear()
            if blocks == 2:
                return ran
    raise AssertionError("no second block")


def test_what_runs():
    """Block of 4, two calls each: the settled block of 4 runs every time, once, or with everything else."""
    assert [n for n, _ in positions_run("exact", Hybrid())] == [8, 8]
    assert [n for n, _ in positions_run("exact", BlockCausal(4))] == [8, 4]
    assert [n for n, _ in positions_run("block", Hybrid())] == [8, 4]
    first, second = (n for n, _ in positions_run("none", Hybrid()))
    assert first == second > 12


def test_history_is_exact_again_after_a_span():
    """``block`` approximates inside an open span only: the text behind it sees clean keys."""
    model, some = tiny_model(), prompts(1)
    g = gen(2)

    def four_places(tail):
        return LogitsRequest(torch.tensor([0]), tail[None], torch.arange(4)[None], 4)

    with torch.no_grad():
        logits = {}
        for cache in ("block", "none"):
            s = Session(model, Hybrid(), some, cache, room=64)
            g.manual_seed(2)
            s.append(0, torch.tensor([V.soa_id]))
            for block in range(3):
                masks = torch.full((4,), V.mask_id)
                s.run([four_places(masks)])
                masks[1] = V.code_start + block  # a step has written something
                (inside,) = s.run([four_places(masks)])
                s.append(0, torch.randint(V.code_start, V.code_stop, (4,), generator=g), closed=block == 2)
            logits[cache] = (inside, s.run([next_token([0])])[0])
    assert torch.allclose(logits["block"][1], logits["none"][1], atol=1e-4)
    assert not torch.allclose(logits["block"][0], logits["none"][0], atol=1e-4), "the approximation is one"


def test_logits_only_for_what_may_be_written():
    d = decoder()
    shapes = []
    inner = d.model.head
    d.model.head = lambda hidden, ids=None: shapes.append((ids.start, ids.stop, len(hidden))) or inner(hidden, ids)
    d.generate(prompts(1))
    text = {(start, stop) for start, stop, _ in shapes if start == 0}
    assert text == {(0, V.soa_last_id + 1)} or all(stop <= V.audio_start for _, stop in text)
    spans = [(start, stop, n) for start, stop, n in shapes if start]
    assert spans and {(a, b) for a, b, _ in spans} == {(V.code_start, V.eoa_last_id + 1)}
    assert [n for _, _, n in spans[:2]] == [4, 2], "two calls for a block of four: only places that are open"


@pytest.mark.parametrize("mask", MASKS)
def test_rows_see_what_the_mask_says(mask):
    """The mask of any part of a row = that part of the mask over the whole row; none where everything is seen."""
    rule = MASKS[mask]
    ids = [5, V.soa_id, *range(V.code_start, V.code_start + 5), V.user_end_id, 7, V.soa_id, *[V.code_start] * 6, 8]
    s = Session(tiny_model(), rule, [Prompt("a", ids[:9])], room=4)
    row = s.rows[0]
    row.write(torch.tensor(ids[9:]))
    whole = dense(rule, layout_of(ids, V.audio_start, 9))[0]
    for start in range(len(ids)):
        got = row.seen(rule, start, len(ids), torch.device("cpu"))
        assert bool(whole[start:].all()) if got is None else torch.equal(got, whole[start:])
    assert s.row(0) == ids[:9], "tentative tokens are not committed"
