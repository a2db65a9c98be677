"""`ttt replay`: frames in a terminal and without one, as a picture, and how it ends."""

import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from tests.conftest import tiny_tokenizer
from tests.unit.sampling.decoder.test_stream import SAMPLERS, V, decoder, prompts, talker
from ttt.cli.main import main
from ttt.inspection.replay import Drawing, scale_of, show
from ttt.inspection.trace_plot import states, trace_picture
from ttt.sampling.trace.record import Tracer, TraceRecord, header, write_trace
from ttt.sampling.trace.trace_frames import frames

ROOT = Path(__file__).resolve().parents[3]
CODE = V.code_start
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def record(**changes):
    """One text token, an opened span, two tokens of which one is masked again and then written, a forced end, text."""
    fields = {
        "uid": "q", "ids": (5, V.soa_id, CODE, CODE + 1, V.eoa_id, 6), "pieces": ("hé", "", "", "", "", " you"),
        "spelling": {5: "h", 6: " you", V.soa_id: "<|begin_of_audio|>", V.eoa_id: "<|end_of_audio_new|>"},
        "calls": {"ar": 3, "diffusion": 2}, "stopped": "im_end", "call": (1, 2, 3, 3, 4, 4, 4, 5), "kind": "ttcrcgst",
        "position": (0, 1, 2, 3, 3, 4, 5, 5), "token": (5, V.soa_id, CODE, CODE + 9, CODE + 1, V.eoa_id, -1, 6),
        "confidence": (0.9, 1.0, 0.8, 0.1, 0.3, None, None, 0.6),
    }  # fmt: skip
    return TraceRecord(**{**fields, **changes})


HEAD = header(tiny_tokenizer(), decoder().sampler, {})


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """A file with two answers of a sampler that masks again."""
    d, some = decoder("semi_ar_origin", talker(soa_id=6.0, im_end_id=-9.0), max_tokens=60), prompts(2, 2)
    tracer = Tracer()
    d.generate(some, tracer)
    path = tmp_path_factory.mktemp("replay") / "some.trace.jsonl"
    write_trace(path, header(tiny_tokenizer(), d.sampler, {}), [tracer.records[p.uid] for p in some])
    return path


def drawn(r, **how):
    return [Drawing(HEAD, r, **how).lines(f) for f in frames(r)]


def test_frames_as_text():
    assert drawn(record()) == [
        ["call 1/5  final 1  masks 0", "  hé"], ["call 2/5  final 2  masks 0", "  hé["],
        ["call 3/5  final 2  masks 1", "  hé[█×"], ["call 4/5  final 5  masks 0", "  hé[█▒]"],
        ["call 5/5  final 6  masks 0", "  hé[█▒] you"],
    ]  # fmt: skip
    assert drawn(record(), fancy=False)[2:4] == [
        ["call 3/5  final 2  masks 1", "  h?[#x"], ["call 4/5  final 5  masks 0", "  h?[#:]"],
    ]  # fmt: skip
    assert drawn(record(kind="ttcccgst"))[2][1] == "  hé[█░]", (
        "a forced end stands there from the block's first call on"
    )


def test_colours_add_nothing_but_colour():
    plain, painted = drawn(record()), drawn(record(), color=True)
    assert [[ANSI.sub("", line) for line in lines] for lines in painted] == plain
    assert "\x1b[38;5;203m×\x1b[0m" in painted[2][1] and ";1;4m" in painted[2][1]
    assert not ANSI.search("".join(map("".join, plain)) + Drawing(HEAD, record()).legend())


def test_lines_are_wrapped_by_columns_not_by_characters():
    wide = record(pieces=("你好世界你好世界", "", "", "", "", " you"))
    lines = drawn(wide, width=20)[-1][1:]
    assert lines == ["  你好世界你好世界[█", "  ▒] you"]
    bell = record(pieces=("a\x1b[2J\n\tb", "", "", "", "", "x"))
    assert drawn(bell)[0][1] == "  a [2J  b", "text cannot steer the terminal"


def test_scores_that_are_no_probabilities_are_scaled():
    r = record(confidence=(0.9, 1.0, -3.0, -9.0, -1.0, None, None, 0.6))
    assert scale_of(r) == (-9.0, 1.0) and scale_of(record()) == (0.0, 1.0)
    assert scale_of(record(confidence=(2.0,) * 8)) == (2.0, 3.0)
    assert drawn(r)[2][1] == "  hé[▓×" and "low_confidence -9 to 1" in Drawing(HEAD, r).legend()


class Terminal(io.StringIO):
    """What a terminal of unlimited height shows after these escapes."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def screen(self):
        lines, at = [""], 0
        for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\n|\r)", self.getvalue()):
            if part == "\n":
                at += 1
                lines += [""] * (at + 1 - len(lines))
            elif part == "\r" or part.endswith(("m", "h", "l")) and part.startswith("\x1b"):
                continue
            elif part.startswith("\x1b") and part.endswith("A"):
                at -= int(part[2:-1])
            elif part == "\x1b[J":
                lines[at:] = [""]
            else:
                lines[at] += part
        return lines


def test_a_terminal_shows_the_last_frame_alone(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    out = Terminal()
    show(out, Drawing(HEAD, record(), width=20), frames(record()), 4.0, live=True)
    legend = Drawing(HEAD, record(), width=20).legend().splitlines()
    assert out.screen() == [*legend, "call 5/5  final 6  masks 0", "  hé[█▒] you", ""]
    assert pauses == [0.25] * 5 and out.getvalue().endswith("\x1b[?25h"), "the cursor is back"


def test_answers_higher_than_the_terminal_show_their_newest_lines(monkeypatch):
    monkeypatch.setenv("LINES", "5")
    monkeypatch.setenv("COLUMNS", "20")
    long = record(pieces=("a" * 18 + "b" * 18 + "c" * 18, "", "", "", "", "d"))
    out = Terminal()
    show(out, Drawing(HEAD, long, width=20), frames(long), 0.0, live=True)
    assert out.screen()[-4:] == ["call 5/5  final 6  masks 0", "  " + "c" * 18, "  [█▒]d", ""]


def test_the_cursor_comes_back_after_an_interrupt(monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    out = Terminal()
    with pytest.raises(KeyboardInterrupt):
        show(out, Drawing(HEAD, record()), frames(record()), 1.0, live=True)
    assert out.getvalue().endswith("\x1b[?25h")


def test_without_a_terminal_frames_are_printed_plainly(trace, capsys):
    assert main(["replay", str(trace)]) == 0
    out = capsys.readouterr().out
    raw = json.loads(trace.read_text().splitlines()[1])
    assert not ANSI.search(out) and out.startswith(f"{raw['uid']}: {len(raw['ids'])} tokens in ")
    assert len(re.findall(r"^call \d+/", out, re.M)) >= max(raw["call"]) and "×" in out
    assert main(["replay", str(trace), "--uid", "p2_1", "--color", "always", "--width", "30"]) == 0
    painted = capsys.readouterr().out
    assert painted.startswith("p2_1: ") and ANSI.search(painted)
    assert all(len(line) <= 30 for line in ANSI.sub("", painted).splitlines()[2:])
    assert main(["replay", str(trace), "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["p2_0", "p2_1"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--uid", "p2_2"], r"no answer 'p2_2'. Did you mean 'p2_[01]'\? 'ttt replay .* --list' names all 2"),
        (["--png", "x.jpg"], "--png: name a .png file, got 'x.jpg'"),
        (["--quiet", "--png", "/dev/null/x.png"], "/dev/null/x.png: a file stands where a folder is needed"),
        (["--speed", "-1"], "--speed and --width must be >= 0, got -1 and 0"),
    ],
)
def test_mistakes_are_one_line(trace, capsys, arguments, message):
    assert main(["replay", str(trace), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.search(message, err) and err.count("\n") == 1


def test_files_that_are_no_traces(tmp_path, capsys):
    assert main(["replay", str(tmp_path / "none.jsonl")]) == 2
    assert "no such trace" in capsys.readouterr().err
    write_trace(tmp_path / "empty.jsonl", HEAD, [])
    assert main(["replay", str(tmp_path / "empty.jsonl")]) == 2
    assert "no answers in this trace" in capsys.readouterr().err
    write_trace(tmp_path / "odd.jsonl", {**HEAD, "vocabulary": {}}, [record()])
    assert main(["replay", str(tmp_path / "odd.jsonl")]) == 2
    assert "the first line lacks 'code_start'" in capsys.readouterr().err


def process(trace, *arguments, **how):
    # A suite that runs in the background of a script ignores Ctrl-C, and its children would inherit that.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-m", "ttt", "replay", str(trace), *arguments]
    return subprocess.Popen(command, cwd=ROOT, preexec_fn=heed, **how)


def test_a_reader_that_leaves_and_an_interrupt_end_it_quietly(trace):
    """The pipe is closed after one line; and Ctrl-C on a terminal shows the cursor again and exits with 130."""
    import pty

    long = process(trace, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    long.stdout.readline()
    long.stdout.close()
    assert (long.stderr.read(), long.wait(30)) == (b"", 0)

    ours, theirs = pty.openpty()
    slow = process(trace, "--speed", "0.05", stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    seen = b""
    while b"call 1/" not in seen:
        seen += os.read(ours, 4096)
    slow.send_signal(signal.SIGINT)
    assert slow.wait(30) == 130 and slow.stderr.read() == b"ttt replay: interrupted\n"
    while b"\x1b[?25h" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)


# -- the picture


def test_the_picture_holds_what_the_frames_hold():
    confidence, what, calls = states(record())
    assert calls.tolist() == [1, 2, 3, 4, 5]
    assert what.tolist() == [
        [3, 0, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0], [2, 2, 3, 4, 0, 0], [2, 2, 2, 3, 3, 0], [2, 2, 2, 2, 2, 3],
    ]  # fmt: skip
    np.testing.assert_allclose(confidence[-1], [0.9, 1.0, 0.8, 0.3, np.nan, 0.6], rtol=1e-6)
    assert np.isnan(confidence[2, 3]), "a token that was taken back is not shown as one"


@pytest.mark.parametrize("sampler", ["semi_ar_origin", "blockwise", "first_hitting", "ar"])
def test_pictures_of_samplers(tmp_path, sampler):
    d, (prompt,) = decoder(sampler, talker(soa_id=6.0, im_end_id=-9.0), max_tokens=32), prompts(2, 1)
    tracer = Tracer()
    d.generate([prompt], tracer)
    r = tracer.records[prompt.uid]
    assert trace_picture(r, header(tiny_tokenizer(), d.sampler, {}), tmp_path / "x.png")
    rgb = np.rint(imread(tmp_path / "x.png")[..., :3] * 255).astype(int).reshape(-1, 3)

    def share(color):
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        return float((np.abs(rgb - wanted) <= 2).all(1).mean())

    assert (share("#f56565") > 0.005) == (sampler == "semi_ar_origin"), "red: masked again"
    assert bool((states(r)[1] == 1).any()) == (sampler in ("blockwise", "first_hitting")), "masks"
    assert share("#dd6b20") > 0.002, "orange: audio"


def test_a_picture_on_request(trace, tmp_path, capsys):
    assert main(["replay", str(trace), "--quiet", "--png", str(tmp_path / "a/b.png")]) == 0
    out, err = capsys.readouterr()
    assert out == "" and err == f"wrote {tmp_path / 'a/b.png'}\n" and imread(tmp_path / "a/b.png").shape[0] > 300
    empty = TraceRecord("e", (), (), {}, {}, "closed", (), "", (), (), ())
    write_trace(tmp_path / "e.jsonl", HEAD, [empty])
    assert main(["replay", str(tmp_path / "e.jsonl"), "--png", str(tmp_path / "e.png")]) == 2
    assert "answer 'e' has no steps to draw" in capsys.readouterr().err and not (tmp_path / "e.png").exists()
    assert set(SAMPLERS) >= {"semi_ar_origin"}
