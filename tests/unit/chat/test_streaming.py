"""`ttt stream` and `ttt generate --trace` on a tiny run: files as they come, the table, and what is refused."""

import json
import re

import numpy as np
import pytest

from tests.conftest import audio, chat, text
from tests.unit.test_api import make_talkative, tone, write_run
from ttt.audio.wav import read, write
from ttt.chat.latency import Timing, percentile
from ttt.chat.streaming import parse_chunks
from ttt.cli.main import main
from ttt.data.read.examples import write_examples
from ttt.errors import ConfigError
from ttt.io.names import file_name
from ttt.sampling.decoder.stream import StreamEvent
from ttt.sampling.trace.record import read_trace
from ttt.types import Example, Generation


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("stream") / "run", "eval.temperature=1.0", "eval.max_tokens=28")
    made = [chat(f"q {i}", [text("a cat sat"[: i + 2])], [text("x"), audio([1, 2], "last")]) for i in range(4)]
    write_examples(folder / "test.jsonl", [Example(e.uid, e.turns, "qa") for e in made])
    return folder


@pytest.fixture(autouse=True)
def talkative(monkeypatch):
    make_talkative(monkeypatch)


def events_of(*pieces):
    """(kind, seconds, seconds of sound) -> stream events."""
    for kind, at_s, duration_s in pieces:
        samples = np.zeros(round(1000 * duration_s), np.float32)
        made = Generation("x", (1, 2), (), {}, 0.0, stopped="im_end") if kind == "end" else None
        yield StreamEvent(kind, 0, at_s, 7, samples=samples, rate_hz=1000, generation=made), at_s


def test_what_a_listener_waits_for():
    """Sound of 1 s heard from 2 s on, the next piece at 3.5 s: half a second of silence; the third is in time."""
    timing = Timing("x")
    for event, at_s in events_of(
        ("text", 0.5, 0), ("text", 0.6, 0), ("block", 1.5, 0), ("sound", 2.0, 1.0), ("sound", 3.5, 2.0), ("sound", 5.0, 0.5),
        ("end", 6.0, 0),
    ):  # fmt: skip
        timing.add(event, at_s)
    assert (timing.first_text_s, timing.first_block_s, timing.first_sound_s) == (0.5, 1.5, 2.0)
    assert timing.stall_s == pytest.approx(0.5) and timing.sound_s == pytest.approx(3.5)
    assert timing.rtf == pytest.approx(6.0 / 3.5) and (timing.pieces, timing.tokens, timing.calls) == (3, 2, 7)
    silent = Timing("y")
    for event, at_s in events_of(("text", 0.5, 0), ("end", 1.0, 0)):
        silent.add(event, at_s)
    assert (silent.first_sound_s, silent.stall_s, silent.rtf, silent.seconds) == (None, None, None, 1.0)


def test_percentiles_are_values_that_were_measured():
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 100, 101):
        values = rng.random(n).tolist()
        for p in (1, 50, 90, 99, 100):
            assert percentile(values, p) == np.quantile(values, p / 100, method="inverted_cdf")


def test_examples_are_streamed_written_and_timed(run, tmp_path, capsys):
    out = tmp_path / "out"
    call = [
        "stream",
        str(run),
        "--examples",
        str(run / "test.jsonl"),
        "--limit",
        "3",
        "--chunks",
        "2,4",
        "--out",
        str(out),
    ]
    assert main(call) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "stream.json").read_text())
    assert [a["uid"] for a in found["answers"]] == ["q 0", "q 1", "q 2"]
    assert all(re.search(rf"^q {i}: .*\(\d+ tokens, \d+ calls, .* s, (im_end|length)\)$", said, re.M) for i in range(3))
    heard = 0
    for i, a in enumerate(found["answers"]):
        pieces = sorted((out / file_name(f"q {i}")).glob("*.wav"))
        assert [p.name for p in pieces] == [f"{n:03d}.wav" for n in range(1, a["pieces"] + 1)]
        if pieces:
            whole = read(out / f"{file_name(f'q {i}')}.wav").samples
            np.testing.assert_array_equal(np.concatenate([read_piece(p) for p in pieces]), whole)
            assert len(whole) / 16_000 == pytest.approx(a["sound_s"])
            heard += 1
            assert 0 < a["first_block_s"] <= a["first_sound_s"] <= a["seconds"] and a["stall_s"] >= 0
    assert heard >= 2
    measures, c = found["measures"], found["conditions"]
    assert measures["seconds"]["n"] == 3 and measures["first_sound_s"]["n"] == heard
    assert measures["seconds"]["p50"] == sorted(a["seconds"] for a in found["answers"])[1]
    assert (c["chunk_frames"], c["warmup"], c["sampler"], c["codec"]) == ([2, 4], 1, "blockwise", "toy-32x320@16000")
    assert c["parameters"] > 10_000 and found["environment"]["threads"] >= 1
    for line in ("first sound, s", "real-time factor", "below 100 answers p99 is the maximum", "pieces of 2,4 codes"):
        assert line in said

    assert main(call) == 2
    assert "holds the answers of an earlier call; give --overwrite" in capsys.readouterr().err
    before = {p: p.read_bytes() for p in sorted(out.rglob("*.wav"))}
    assert main([*call, "--overwrite", "--report"]) == 0
    assert not re.search(r"^q 0:", capsys.readouterr().out, re.M), "--report: the table only"
    assert {p: p.read_bytes() for p in sorted(out.rglob("*.wav"))} == before, "the same draws, the same sound"
    assert main([*call[:-4], "--chunks", "50", "--out", str(out), "--overwrite", "--report"]) == 0
    assert all(len(list((out / file_name(f"q {i}")).glob("*.wav"))) <= 1 for i in range(3)), "pieces of the earlier call are gone"


def read_piece(path):
    import soundfile

    return soundfile.read(path, dtype="float32")[0]


def test_one_question_in_text_or_in_a_wav(run, tmp_path, capsys):
    assert main(["stream", str(run), "--text", "a cat", "--task", "qa", "--no-sound", "--warmup", "0"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("text: ") and "first sound" not in out and "pieces of no codes" in out
    write(tmp_path / "asked.wav", tone())
    assert main(["stream", str(run), "eval.max_tokens=8", "--wav", str(tmp_path / "asked.wav"), "--task", "asr"]) == 0
    assert capsys.readouterr().out.startswith("asked: ")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "nothing to ask: give --examples FILE, --text or --wav, or set eval.examples"),
        (["--text", "x", "--wav", "y.wav"], "--text, --wav and --examples exclude each other"),
        (["--task", "qa"], "--task goes with --text or --wav"),
        (["--text", "x", "--task", "qq"], "task 'qq': the run has none of this name"),
        (["--text", "x", "--chunks", "a,b"], "--chunks: expected numbers of codes like 25,50,100, got 'a,b'"),
        (["--text", "x", "--chunks", "5,0"], "chunk sizes: expected one or more numbers of frames >= 1, got 5,0"),
        (["--text", "x", "--warmup", "-1"], "--warmup and --limit must be >= 0"),
        (["--text", "x", "codec=null"], "there is no codec to make sound with"),
        (["--text", "x", "codec=precomputed"], r"codec: 'precomputed' has 1 codebook\(s\) of 16384 codes"),
        (["--text", "x", "codec={name: precomputed, num_codes: 32}"], "'precomputed' cannot decode, its codes come with the data"),
        (["--examples", "nowhere.jsonl"], "nowhere.jsonl: no such"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(run, capsys, arguments, message):
    assert main(["stream", str(run), *arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("ttt ")]
    assert out == "" and len(lines) == 1 and re.search(message, lines[0])


def test_chunks_as_spelled():
    assert parse_chunks("25,50,100") == (25, 50, 100)
    with pytest.raises(ConfigError, match="got ''"):
        parse_chunks("")


def test_generate_writes_a_trace_on_request(run, tmp_path, capsys):
    """The answers are the same with and without; a trace that is not of these answers does not stay."""
    out = tmp_path / "eval"
    call = ["generate", "--config", str(run / "config.yaml"), f"eval.checkpoint={run}", f"eval.examples=[{run}/test.jsonl]",
            f"eval.out={out}", "eval.batch_size=3"]  # fmt: skip
    assert main(call) == 0
    answers = out / "test.generations.jsonl"
    plain = [{k: r[k] for k in ("uid", "text", "codes", "calls")} for r in map(json.loads, answers.open())]
    assert not (out / "test.trace.jsonl").exists()
    assert main([*call, "--trace"]) == 0, "an up-to-date stage lacks its trace"
    again = [{k: r[k] for k in ("uid", "text", "codes", "calls")} for r in map(json.loads, answers.open())]
    assert again == plain
    head, records = read_trace(out / "test.trace.jsonl")
    assert head["settings"]["sampler"]["name"] == "blockwise"
    assert [(r.uid, dict(r.calls)) for r in records] == [(r["uid"], r["calls"]) for r in plain]
    stamp = (out / "test.trace.jsonl").stat().st_mtime_ns
    assert main([*call, "--trace"]) == 0 and main(call) == 0
    assert (out / "test.trace.jsonl").stat().st_mtime_ns == stamp, "up to date"
    assert main([*call, "run.seed=5", "--overwrite"]) == 0
    assert not (out / "test.trace.jsonl").exists()
    assert main(["replay", str(out / "test.trace.jsonl")]) == 2
