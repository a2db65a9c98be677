"""Traces say what the network saw: every frame is checked against the ids that really went in."""

import dataclasses
import json

import numpy as np
import pytest

from tests.conftest import tiny_tokenizer
from tests.unit.sampling.decoder.test_stream import SAMPLERS, V, decoder, prompts, talker
from ttt.errors import DataError
from ttt.sampling.decoder.decoder import DecodeSettings
from ttt.sampling.trace.record import KINDS, Tracer, TraceRecord, header, read_trace, write_trace
from ttt.sampling.trace.trace_frames import MASK, Cell, Frame, frames

UNCACHED = (
    {"cache": "none"} if "cache" in {f.name for f in dataclasses.fields(DecodeSettings)} else {"use_cache": False}
)


def traced(d, some):
    tracer = Tracer()
    made = d.generate(some, tracer)
    return made, [tracer.records[p.uid] for p in some]


def inputs_of(d, prompt):
    """(record, answer ids that went into each network call): uncached, so a call sees everything."""
    seen = []
    hook = d.model.hf.get_input_embeddings().register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    try:
        _, (record,) = traced(d, [prompt])
    finally:
        hook.remove()
    return record, [x.flatten()[len(prompt.ids) :].tolist() for x in seen]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_frame_is_what_the_next_call_sees(sampler, seed):
    d = decoder(sampler, talker(seed, soa_id=6.0, im_end_id=-2.0), **UNCACHED)
    record, inputs = inputs_of(d, prompts(seed, 1)[0])
    pictures = {f.call: f for f in reversed(list(frames(record)))}  # the first of each call
    assert sorted(pictures) == list(range(1, len(inputs) + 1)), "one frame per network call"
    remasked = 0
    for call, picture in pictures.items():
        if call == len(inputs):
            continue
        after = inputs[call]
        for p, cell in enumerate(picture.cells):
            if p >= len(after):
                assert p >= picture.final, "only what was dropped may be missing"
            elif cell.state in ("mask", "remasked"):
                assert after[p] == V.mask_id, (call, p, cell)
                remasked += cell.state == "remasked"
            else:
                assert after[p] == cell.token, (call, p, cell)
        # What is not shown: the masks of later blocks, and an end token that is forced upon the last.
        assert set(after[len(picture.cells) :]) <= {V.mask_id, V.eoa_id, V.eoa_last_id}
        assert V.mask_id not in after[: picture.final]
    assert bool(remasked) == (sampler in ("fixed_length", "semi_ar_origin", "semi_ar_padding"))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_the_last_frame_is_the_answer_and_tracing_changes_nothing(sampler):
    some = prompts(4, 3)
    expected = decoder(sampler).generate(some)
    made, records = traced(decoder(sampler), some)
    assert [m.ids for m in made] == [e.ids for e in expected]
    for m, record, prompt in zip(made, records, some, strict=True):
        *_, last = frames(record)
        assert tuple(c.token for c in last.cells) == m.ids == tuple(record.ids) and last.final == len(m.ids)
        assert (record.stopped, dict(record.calls)) == (m.stopped, dict(m.calls))
        assert max(record.call) == sum(m.calls.values())
        (_, (alone,)) = traced(decoder(sampler), [prompt])
        same = [f.name for f in dataclasses.fields(alone) if f.name != "confidence"]
        assert all(getattr(alone, n) == getattr(record, n) for n in same), (
            "calls are the answer's own, alone or in a batch"
        )


def test_confidences_are_those_the_sampler_ranked_by():
    d, (prompt,) = decoder(model=talker(soa_id=5.0, im_end_id=-9.0)), prompts(2, 1)
    heard = []
    for _ in d.events([prompt], lambda row, at, ids, scores: heard.extend(zip(ids.tolist(), scores.tolist()))):
        pass
    _, (record,) = traced(d, [prompt])
    committed = [(t, c) for k, t, c in zip(record.kind, record.token, record.confidence) if k == "c"]
    assert committed == heard and len(heard) > 10
    texts = [c for k, c in zip(record.kind, record.confidence) if k == "t"]
    assert len(texts) > 3 and all(0 < c <= 1 for c in texts)
    assert all(c is None for k, c in zip(record.kind, record.confidence) if k in "gsx")
    certain = decoder(model=talker(im_end_id=60.0))
    _, (record,) = traced(certain, [prompt])
    assert record.kind == "t" and record.confidence[0] == pytest.approx(1.0)


def test_forced_ends_are_given_and_what_stands_behind_an_end_is_dropped():
    """A span may have two codes at most: its end token is put there, not predicted; a block longer than the span is cut."""
    from ttt.registry.families import SAMPLER
    from ttt.sampling.samplers.length import UntilEoa

    d = decoder(model=talker(soa_id=9.0, eoa_id=-50.0, im_end_id=-50.0), max_tokens=12, length=UntilEoa(2))
    _, (record,) = traced(d, prompts(3, 1))
    given = [t for k, t in zip(record.kind, record.token) if k == "g"]
    assert given and set(given) <= {V.eoa_id, V.eoa_last_id} and "x" not in record.kind

    d = decoder(model=talker(soa_id=9.0, eoa_id=3.0), max_tokens=60)
    d.sampler = SAMPLER.build({**SAMPLERS["blockwise"], "drop_after_end": False, "temperature": 1.0}, "s")
    _, (record,) = traced(d, prompts(3, 1))
    at = record.kind.index("x")
    dropped = [p for k, p in zip(record.kind[:at], record.position) if k == "c" and p >= record.position[at]]
    assert dropped, "tokens behind the end token were written, then dropped"
    shown = {f.call: len(f.cells) for f in reversed(list(frames(record)))}
    assert shown[record.call[at]] == max(dropped) + 1 and shown[record.call[at] + 1] == record.position[at] + 1


def test_frames_by_hand():
    """Two tokens predicted, one taken back, then written; an end token that was forced; text behind."""
    record = TraceRecord(
        uid="x", ids=(5, 40, 41, 90, 6), pieces=("a", "", "", "", "b"), spelling={5: "a", 6: "b", 90: "]"},
        calls={"ar": 2, "diffusion": 2}, stopped="im_end",
        call=(1, 2, 2, 3, 3, 3, 4), kind="tcrcgst", position=(0, 1, 2, 2, 3, 4, 4), token=(5, 40, 44, 41, 90, -1, 6),
        confidence=(0.9, 0.8, 0.1, 0.7, None, None, 0.6),
    )  # fmt: skip
    assert list(frames(record)) == [
        Frame(1, (Cell("text", 5, 0.9, True),), 1),
        Frame(2, (Cell("text", 5, 0.9), Cell("committed", 40, 0.8, True), Cell("remasked", 44, 0.1, True)), 1),
        Frame(3, (Cell("text", 5, 0.9), Cell("committed", 40, 0.8), Cell("committed", 41, 0.7, True),
                  Cell("given", 90, None, True)), 4),
        Frame(4, (Cell("text", 5, 0.9), Cell("committed", 40, 0.8), Cell("committed", 41, 0.7), Cell("given", 90),
                  Cell("text", 6, 0.6, True)), 5),
    ]  # fmt: skip
    second, third = list(frames(dataclasses.replace(record, kind="tccccst")))[1:3]
    assert second.cells[2:] == (Cell("committed", 44, 0.1, True), MASK), "a block's later places are masks"
    second, third = list(frames(dataclasses.replace(record, kind="tcccgst")))[1:3]
    assert second.cells[3] == Cell("given", 90, None, True), "but a forced end stands there from the start"
    assert third.cells[3] == Cell("given", 90)


def test_leaving_early_records_what_was_seen():
    d, some = decoder(model=talker(soa_id=5.0, im_end_id=-9.0)), prompts(2, 2)
    tracer = Tracer()
    events = tracer.watch(d, some)
    for _ in range(5):
        next(events)
    events.close()
    assert set(tracer.records) == {p.uid for p in some}
    assert sum(len(r.ids) for r in tracer.records.values()) == 5
    assert {r.stopped for r in tracer.records.values()} == {"closed"}
    for record in tracer.records.values():
        assert len(list(frames(record))) >= 1 or not record.ids


# -- files


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    d, some = decoder("fixed_length", talker(soa_id=5.0, im_end_id=-9.0)), prompts(2, 2)
    _, records = traced(d, some)
    path = tmp_path_factory.mktemp("trace") / "some.trace.jsonl"
    write_trace(path, header(tiny_tokenizer(), d.sampler, {"seed": 1}), records)
    return path, records


def test_files_round_trip(made):
    path, records = made
    head, again = read_trace(path)
    assert (head["format"], head["version"], head["settings"]) == ("ttt-trace", 1, {"seed": 1})
    assert head["kinds"] == KINDS and head["confidence"]["c"] == "low_confidence"
    for a, b in zip(again, records, strict=True):
        np.testing.assert_allclose(
            [np.nan if c is None else c for c in a.confidence],
            [np.nan if c is None else c for c in b.confidence],
            rtol=1e-3,
        )
        for name in ("uid", "kind", "stopped", "calls", "spelling"):
            assert getattr(a, name) == getattr(b, name)
        for name in ("ids", "pieces", "call", "position", "token"):
            assert list(getattr(a, name)) == list(getattr(b, name))
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_a_trace_explains_itself(made):
    """Texts are spelled, codes are not; pieces put together are the answer's text."""
    from ttt.types import Span

    for record in read_trace(made[0])[1]:
        text = "".join(record.pieces)
        assert all(i in record.spelling or V.code_start <= i < V.code_stop for i in record.ids)
        from ttt.sampling.decoder.decoder import spans_of

        spans = [s for s in spans_of(record.ids, tiny_tokenizer()) if s.kind == "text"]
        assert text == "".join(s.text for s in spans) and all(isinstance(s, Span) for s in spans)
        assert all(record.spelling.get(i) == "<|begin_of_audio|>" for i in record.ids if i == V.soa_id)


def damaged(path, tmp_path, change):
    lines = path.read_text().splitlines()
    new = tmp_path / "bad.jsonl"
    new.write_text("\n".join(change(lines)) + "\n")
    return new


def edited(number, **values):
    return lambda lines: [json.dumps({**json.loads(x), **values}) if n == number else x for n, x in enumerate(lines)]


@pytest.mark.parametrize(
    "change, message",
    [
        (edited(0, format="other"), "bad.jsonl:1: not a trace; name a file that 'ttt generate --trace' wrote"),
        (edited(0, version=9), "bad.jsonl:1: a trace of version 9, this program reads version 1"),
        (edited(1, position=[1]), "bad.jsonl:2: trace of 'p2_0': columns must share one length"),
        (edited(1, confidence=["0.5"]), "bad.jsonl:2: not an answer of a trace .confidence: '0.5' is neither a number"),
        (edited(1, confidence=[float("nan")]), "NaN"),
        (edited(1, position=[10**9]), "bad.jsonl:2: .*position: 1000000000 is no whole number >= 0 and <= 131072"),
        (edited(1, call=[-1]), "bad.jsonl:2: .*call: -1 is no whole number >= 0"),
        (edited(1, call=["1"]), "bad.jsonl:2: .*call: '1' is no whole number >= 0"),
        (edited(1, token=[-2]), "bad.jsonl:2: .*token: -2 is no whole number >= -1"),
        (edited(1, calls={"ar": "x"}), "bad.jsonl:2: .*calls are whole numbers"),
        (edited(1, stopped=3), "bad.jsonl:2: .*pieces, spelling, uid and stopped are texts"),
        (edited(1, calls=None, kinds=""), "bad.jsonl:2: not an answer of a trace"),
        (edited(1, pieces=[]), "bad.jsonl:2: trace of 'p2_0': .* ids but 0 pieces"),
        (lambda lines: [lines[0], lines[1][:50]], "bad.jsonl:2: not JSON"),
        (lambda lines: [lines[0], "7"], "bad.jsonl:2: not an answer of a trace"),
        (lambda lines: lines[1:], "bad.jsonl:1: not a trace"),
    ],
)
def test_damaged_files_are_named_with_their_line(made, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read_trace(damaged(made[0], tmp_path, change))


def test_unknown_kinds_missing_and_empty_files(made, tmp_path):
    kind = read_trace(made[0])[1][0].kind
    with pytest.raises(DataError, match="unknown kind 'q'; kinds: t, a, c, r, g, s, x"):
        read_trace(damaged(made[0], tmp_path, edited(1, kind="q" + kind[1:])))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="empty.jsonl: the file is empty"):
        read_trace(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="no such trace; write one with 'ttt generate --trace'"):
        read_trace(tmp_path / "none.jsonl")
