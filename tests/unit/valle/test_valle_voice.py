"""A vector that says who speaks, and guidance by it: training, decoding, what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import gen
from tests.unit.valle.small_valle import BOOKS, CODES, example, network, recording, tokenizer
from ttt.data.batches.codec_frames import frames_of, resplit
from ttt.data.batches.rows import collate
from ttt.data.encode import encode_example
from ttt.data.sources.streams import streams_digest
from ttt.errors import ConfigError, DataError
from ttt.model.arch import check_voices
from ttt.model.valle.network import FrameInputs
from ttt.registry.families import MASK, OBJECTIVE, SAMPLER, TASK
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.types import Example, LogitsRequest, Prompt, Voices

PREFIX = MASK.build("prefix", "mask")
V = tokenizer().vocab
SIZE = 4
FORMS = [{}, {"positions": "rotary", "prepend_bos": False}, {"text": True, "share_tables": True}]


def spoken(seed: int = 0, size: int = SIZE) -> list[Example]:
    rng = np.random.default_rng(seed)
    some = [example(f"e{i}", recording(rng, s), recording(rng, t), "a cat") for i, (s, t) in enumerate(((5, 7), (4, 3), (6, 9)))]
    return [dataclasses.replace(e, meta={"voice_vector": rng.normal(size=size).tolist()}) for e in some]


def batch_of(some):
    streams = [encode_example(e, tokenizer()) for e in some]
    rows = [streams[:2], *([s] for s in streams[2:])]
    return collate(rows, max(sum(map(len, r)) for r in rows), V.pad_id, V.mask_id, V.code_space)


def prompts(some) -> list[Prompt]:
    return [Prompt.of(encode_example(dataclasses.replace(e, turns=e.turns[:1]), tokenizer(), open_answer=True)) for e in some]


def speaking(**fields):
    """A network whose null vector is not 0."""
    net = network(voice_dim=SIZE, **fields)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("voice.null"):
                p.normal_(generator=gen(5))
    return net


def build(name="valle", **fields):
    return OBJECTIVE.build({"name": name, **fields}, "objective")


def losses(net, plan, objective=None):
    with torch.no_grad():
        return {n: float(t.sum) for n, t in (objective or build()).terms(net, plan).terms.items()}


def test_every_document_keeps_its_voice():
    some = spoken()
    frames = frames_of(batch_of(some))
    for d, e in enumerate(some):
        assert frames.voices[d].tolist() == pytest.approx(e.meta["voice_vector"])
    assert resplit(frames, torch.tensor([2, 2, 2])).voices is frames.voices
    stream = encode_example(some[0], tokenizer())
    changed = (stream.first(20, BOOKS), stream.truncate(1, BOOKS), stream.repeat_last(2))
    assert all(s.voice is stream.voice for s in changed)
    assert batch_of([some[0], dataclasses.replace(some[1], meta={})]).voices is None
    other = dataclasses.replace(stream, voice=stream.voice + 1)
    assert len({streams_digest([s]) for s in (stream, other, dataclasses.replace(stream, voice=None))}) == 3


def test_without_the_option_voices_change_nothing():
    some, net = spoken(), network()
    silent = [dataclasses.replace(e, meta={}) for e in some]
    assert not [n for n, _ in net.named_parameters() if "voice" in n]
    plans = [build().plan(batch_of(e), gen(3)) for e in (some, silent)]
    assert losses(net, plans[0]) == losses(net, plans[1])


@torch.no_grad()
@pytest.mark.parametrize("fields", FORMS)
def test_cached_logits_are_those_of_training(fields):
    """With a voice and without one (guidance), in a batch, by both decoders: cached, uncached and in training the same."""
    net, some = speaking(**fields), spoken()
    cached, slow = (net.session(PREFIX, cache=c, slots=3) for c in ("exact", "none"))
    for session in (cached, slow):
        for n, p in enumerate(prompts(some)):
            session.admit(n, p)
    f = frames_of(batch_of(some))
    for guidance, given in (("", True), ("no_voice", False)):
        voices = Voices(f.voices, torch.full((3,), given))
        words = f.words if net.arch.text else None
        scores = net(FrameInputs(
            f.prompt, f.prompt_lens, f.target, f.target_lens, PREFIX, first_code=False, stages=(1,), words=words, voices=voices,
        ))  # fmt: skip
        for d, length in enumerate(f.target_lens.tolist()):
            codes = f.target[d, :length]
            flat = (codes + V.code_start + torch.arange(BOOKS) * CODES).flatten()
            ar = scores["ar"].nll[scores["ar"].row == d]
            for t in range(1, length):
                tail = torch.cat([flat[: t * BOOKS], torch.tensor([V.mask_id])])
                places = torch.tensor([[t * BOOKS]])
                request = LogitsRequest(torch.tensor([d]), tail[None], places, 1, guidance=guidance)
                both = [s.run([request])[0][0, 0].log_softmax(-1) for s in (cached, slow)]
                torch.testing.assert_close(*both, atol=1e-5, rtol=0)
                found = -both[0][V.code_start + int(codes[t, 0])]
                torch.testing.assert_close(found, ar[t if net.arch.prepend_bos else t - 1], atol=1e-5, rtol=0)
            places = torch.arange(length)[None] * BOOKS + 1
            request = LogitsRequest(torch.tensor([d]), flat[None], places, len(flat), guidance=guidance)
            upper = cached.run([request])[0][0].log_softmax(-1)
            found = -upper.gather(1, (V.code_start + CODES + codes[:, 1])[:, None])[:, 0]
            torch.testing.assert_close(found, scores["nar"].nll[scores["nar"].row == d], atol=1e-5, rtol=0)


def test_withheld_voices_are_the_null_vector():
    """Where a voice is withheld the vector has no effect; how many are withheld is drawn for every update, never in validation."""
    net, objective = speaking(), build(voice_drop=0.5)
    told = torch.cat([objective.plan(batch_of(spoken()), gen(s)).told for s in range(100)])
    assert 0.4 < float(told.float().mean()) < 0.6
    assert objective.clean_plan(batch_of(spoken()), gen(1)).told is None and build().plan(batch_of(spoken()), gen(1)).told is None
    moved = [dataclasses.replace(e, meta={"voice_vector": [9.0] * SIZE}) for e in spoken()]
    for values, same in (([False] * 3, True), ([True] * 3, False)):
        found = [
            losses(net, dataclasses.replace(build().plan(batch_of(e), gen(2)), told=torch.tensor(values)))
            for e in (spoken(), moved)
        ]
        assert (found[0] == found[1]) is same
    masked = build("valle_masked", voice_drop=0.5).plan(batch_of(spoken()), gen(1))
    assert masked.told.shape == (3,)


def answers(net, some, batch_size=0, **fields):
    sampler = SAMPLER.build({"name": "valle", "max_frames": 6, "min_frames": 6, **fields}, "eval.sampler")
    made = Decoder(net, PREFIX, sampler, DecodeSettings(max_tokens=200)).generate(prompts(some), batch_size=batch_size)
    return [g.codes.tolist() for g in made], [g.calls for g in made]


def test_guidance():
    """0 is the conditional answer; more moves it, for each row as alone; without effect where the voices have none."""
    net, some = speaking(), spoken()
    plain, calls = answers(net, some)
    strong, guided_calls = answers(net, some, voice_scale=3.0)
    assert answers(net, some, voice_scale=0.0)[0] == plain != strong and guided_calls == calls
    assert answers(net, some, batch_size=1, voice_scale=3.0)[0] == strong
    with torch.no_grad():
        for module in (net.ar_voice, net.nar_voice):
            module.project.weight.zero_()
            module.null.zero_()
    assert answers(net, some, voice_scale=3.0)[0] == answers(net, some)[0]


def test_guided_logits_are_a_step_from_the_null_vector_through_the_voice():
    sampler = SAMPLER.build({"name": "valle", "voice_scale": 2.0}, "eval.sampler")
    told, untold = torch.tensor([[[1.0, 0.0, -torch.inf]]]), torch.tensor([[[0.5, 2.0, -torch.inf]]])
    assert sampler._logits([told, untold]).tolist() == [[[2.0, -4.0, -float("inf")]]]


@pytest.mark.parametrize("name, nar", [("valle", "stages"), ("valle_masked", "masked_all")])
def test_voices_are_learned(name, nar):
    """Prompts are the same; the vector alone says which codes follow, and the null vector knows neither."""
    heard = np.zeros((3, BOOKS), np.int32)
    some = [
        dataclasses.replace(example(f"v{v}", heard, np.full((4, BOOKS), 3 + 5 * v, np.int32)), meta={"voice_vector": [1.0 - v, v]})
        for v in (0, 1)
    ]
    net = network(voice_dim=2, nar=nar, dropout=0.0, layers=1, spread=1.0).train()
    fields = {"codebooks": "all"} if nar == "masked_all" else {}
    objective = build(name, voice_drop=0.3, **fields)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(60):
        optimizer.zero_grad()
        found = objective.terms(net, objective.plan(batch_of(some), gen(step)))
        sum(t.sum / t.count for t in found.terms.values()).backward()
        optimizer.step()
    net.eval()
    sampler = {"first_codebook": "masked", "steps_total": 4} if nar == "masked_all" else {"temperature": 0.0}
    built = SAMPLER.build({"name": name, "max_frames": 4, "voice_scale": 1.0, **sampler}, "eval.sampler")
    made = Decoder(net, PREFIX, built, DecodeSettings(max_tokens=200)).generate(prompts(some))
    assert [g.codes.tolist() for g in made] == [[[3] * BOOKS] * 4, [[8] * BOOKS] * 4]
    plan = objective.clean_plan(batch_of(some), gen(0))
    untold = dataclasses.replace(plan, told=torch.zeros(2, dtype=torch.bool))
    assert sum(losses(net, plan, objective).values()) < 0.5 * sum(losses(net, untold, objective).values())


def test_tasks_pass_the_vector_on():
    codes = {"u": np.zeros((9, BOOKS), np.int32)}
    item = {"id": "a", "output": "u", "text_out": "a cat", "voice_vector": [1.0, 2.0]}
    for task in ("continuation", "zero_shot_tts"):
        built = TASK.build(task, "task")
        assert built.build(item, codes).meta["voice_vector"] == [1.0, 2.0]
        assert "voice_vector" not in built.build({**item, "voice_vector": None}, codes).meta


def test_refusals(tmp_path):
    net, some = speaking(), spoken()
    long, silent = spoken(size=SIZE + 1), [dataclasses.replace(e, meta={}) for e in some]
    for wrong, message in ((long, "has 5 numbers"), (silent, "has no voice_vector")):
        with pytest.raises(DataError, match=message):
            answers(net, wrong)
        with pytest.raises(DataError, match=message):
            check_voices(net.arch, build(), [encode_example(e, tokenizer()) for e in wrong])
        with pytest.raises(DataError, match="data.dev"):
            check_voices(net.arch, build(), [], [batch_of(wrong)])
        with pytest.raises(DataError, match="voice_vector of 4 numbers"):
            losses(net, build().plan(batch_of(wrong), gen(1)))
    check_voices(net.arch, build(voice_drop=0.1), [encode_example(e, tokenizer()) for e in some], [batch_of(some)])
    with pytest.raises(ConfigError, match="voice_drop"):
        check_voices(network().arch, build(voice_drop=0.1), [])
    with pytest.raises(ConfigError, match="voice_scale"):
        answers(network(), some, voice_scale=1.0)
    for value in ("loud", [], [[1.0]], [1.0, float("nan")]):
        with pytest.raises(DataError, match="voice_vector must be"):
            encode_example(dataclasses.replace(some[0], meta={"voice_vector": value}), tokenizer())
