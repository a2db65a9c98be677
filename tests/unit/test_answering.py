"""`ttt generate` in groups: the same answers for any number of processes, whatever was killed before; wavs and order."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import audio, text, tiny_model
from tests.tiny_runs import chat_of, make_run
from ttt import answering
from ttt.audio.wav import read
from ttt.cli.main import main
from ttt.data.read.examples import write_examples
from ttt.errors import DataError
from ttt.eval.generate import Asked, groups_of
from ttt.eval.partial import PartialAnswers, partial_files
from ttt.masks.library import Hybrid
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.samplers.blocks import Blockwise
from ttt.types import Example, Prompt, Turn

TIMES = ("seconds", "first_block_s")
NUMBER = 9


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("answering") / "run", "ttt")
    words = ["a cat sat on the mat", "one", "a cat", "two three"]
    write_examples(folder / "many.jsonl", [
        chat_of(f"p{i:02}", "tts", [text(words[i % 4])], [audio([i], "last")]) if i % 3
        else chat_of(f"p{i:02}", "asr", [audio(range(i + 1), "user")], [text("a"), audio([i], "last")])
        for i in reversed(range(NUMBER))
    ])  # fmt: skip
    return folder


def words(run: Path, out: Path, *options: str) -> list[str]:
    return ["generate", "--config", f"{run}/config.yaml", f"eval.examples=[{run}/many.jsonl]", f"eval.out={out}",
            "eval.batch_size=2", "eval.temperature=1.0", "run.threads=1", *options]  # fmt: skip


def records(out: Path) -> list[dict]:
    lines = (out / "many.generations.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert main(words(run, out)) == 0
    return records(out)


def as_rank(monkeypatch, rank: int, size: int) -> None:
    """Calls are one rank of several, whose others are not there."""

    class Lone(answering.Ranks):
        def __init__(self, *_):
            self.rank, self.size, self._owns_group = rank, 1, False

        def all_gather(self, value):
            return [value or [False]]

        def barrier(self):
            self.size = 1

    monkeypatch.setattr(answering, "Ranks", Lone)
    opened = answering.Answering.answer

    def answer(self, file):
        self.ranks.size = size
        opened(self, file)
        self.ranks.size = 1

    monkeypatch.setattr(answering.Answering, "answer", answer)


def test_the_order_is_that_of_the_examples(whole):
    assert [r["uid"] for r in whole] == [f"p{i:02}" for i in reversed(range(NUMBER))]
    assert whole[0]["prompt"] == "a cat sat on the mat" and whole[-1]["prompt"] == "" and any(r["codes"] for r in whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranks_share_the_prompts_and_write_one_file(run, whole, tmp_path, monkeypatch, dtype):
    if dtype != "float32":
        assert main(words(run, tmp_path / "one", f"model.dtype={dtype}")) == 0
        whole = records(tmp_path / "one")
    for rank in (2, 1, 0):
        with monkeypatch.context() as patch:
            as_rank(patch, rank, 3)
            patch.setattr(answering.Answering, "join", answering.Answering.join if not rank else lambda *_: None)
            assert main(words(run, tmp_path, f"model.dtype={dtype}")) == 0
        if rank:
            assert rank in partial_files(tmp_path / "many.generations.jsonl")
    assert records(tmp_path) == whole and not partial_files(tmp_path / "many.generations.jsonl")


def test_another_number_of_ranks_goes_on(run, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        as_rank(patch, 1, 2)
        patch.setattr(answering.Answering, "join", lambda *_: None)
        assert main(words(run, tmp_path)) == 0
    (path,) = partial_files(tmp_path / "many.generations.jsonl").values()
    kept = {json.loads(line)["record"]["uid"] for line in path.read_text().splitlines() if line.startswith('{"record"')}
    added = []
    with monkeypatch.context() as patch:
        add = PartialAnswers.add
        patch.setattr(PartialAnswers, "add", lambda self, record, trace=None: (added.append(record["uid"]), add(self, record)))
        assert main(words(run, tmp_path)) == 0
    assert kept and records(tmp_path) == whole and sorted([*kept, *added]) == sorted(r["uid"] for r in whole)


def test_beginning_again_leaves_no_answers_of_other_ranks(run, whole, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        as_rank(patch, 2, 3)
        patch.setattr(answering.Answering, "join", lambda *_: None)
        assert main(words(run, tmp_path, "run.seed=5")) == 0
    assert main(words(run, tmp_path)) == 2 and "made with other settings (settings.seed)" in capsys.readouterr().err
    assert main(words(run, tmp_path, "--overwrite")) == 0
    assert records(tmp_path) == whole and not partial_files(tmp_path / "many.generations.jsonl")


def test_a_killed_process_loses_only_what_it_was_writing(run, whole, tmp_path):
    child = os.fork()
    if not child:  # dies in the middle of the fourth answer's line
        write, answers = os.pwrite, []

        def torn(handle, data, at):
            answers.append(data.startswith(b'{"record"'))
            if sum(answers) == 4:
                write(handle, data[:30], at)
                os.kill(os.getpid(), signal.SIGKILL)
            return write(handle, data, at)

        os.pwrite = torn
        main(words(run, tmp_path))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (path,) = partial_files(tmp_path / "many.generations.jsonl").values()
    assert sum(line.startswith('{"record"') for line in path.read_text().splitlines()) == 4
    assert main(words(run, tmp_path)) == 0 and records(tmp_path) == whole


def test_windows_change_no_answer_and_bad_prompts_are_found_before_the_first(run, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(answering, "WINDOW", 4)
    monkeypatch.setattr(answering, "BATCHES", 1)
    assert main(words(run, tmp_path / "windows")) == 0
    assert [r["uid"] for r in records(tmp_path / "windows")] == [r["uid"] for r in whole]
    last = chat_of("bad", "tts", [text("<|im_end|>")], [audio([1], "last")])
    examples = [chat_of(f"q{i}", "tts", [text("a")], [audio([1], "last")]) for i in range(5)]
    write_examples(tmp_path / "bad.jsonl", [*examples, last])
    monkeypatch.setattr(PartialAnswers, "add", lambda *_: pytest.fail("an answer was decoded"))
    assert main(words(run, tmp_path / "bad", f"eval.examples=[{tmp_path}/bad.jsonl]")) == 2
    assert "example 'bad'" in capsys.readouterr().err


def test_spoken_answers_are_heard(run, whole, tmp_path):
    assert main(words(run, tmp_path, "--wav")) == 0
    made = records(tmp_path)
    assert [{k: v for k, v in r.items() if k != "wav"} for r in made] == whole
    for record in made:
        assert bool(record["wav"]) == bool(record["codes"])
        if record["wav"]:
            assert read(tmp_path / record["wav"]).duration_s == pytest.approx(len(record["codes"]) / 50)
    (tmp_path / "many.wavs/old.wav").write_text("of an earlier call")
    assert main(words(run, tmp_path, "--wav", "--overwrite")) == 0 and not (tmp_path / "many.wavs/old.wav").exists()
    assert main(words(run, tmp_path, "--overwrite")) == 0 and not (tmp_path / "many.wavs").exists()


def test_answers_without_speech_are_up_to_date_too(run, tmp_path, monkeypatch):
    silent = words(run, tmp_path, "--wav", "eval.max_tokens=1")
    assert main(silent) == 0 and not any(record["wav"] for record in records(tmp_path))
    monkeypatch.setattr(answering, "open_model", lambda *_: pytest.fail("answered again"))
    assert main(silent) == 0


def test_a_rank_that_fails_says_why_once(run, tmp_path, monkeypatch):
    as_rank(monkeypatch, 1, 2)
    monkeypatch.setattr(answering, "_wait", lambda *_: pytest.fail("it waits for the others"))

    def full(*_):
        raise DataError("disk full")

    monkeypatch.setattr(PartialAnswers, "_write", full)
    assert main(words(run, tmp_path)) == 2 and not (tmp_path / "many.generations.jsonl").exists()


def test_prompts_alone_are_answered_by_any_run_but_have_no_likelihood(run, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("a cat\n")
    (tmp_path / "ids.jsonl").write_text('{"input_ids": [5, 6, 7, 8], "prompt_length": 2}\n')
    assert main(["stream", str(run), "--examples", f"{tmp_path}/lines.txt", "--no-sound"]) == 0
    assert capsys.readouterr().out.startswith("lines.txt:1: ")
    sampled = ["inspect", "samplers", str(run), "--samplers", "own", "--out", str(tmp_path / "out"), "--examples"]
    for name, message in (("lines.txt", "none of the 1 examples has an answer"), ("ids.jsonl", "'ids.jsonl:1': holds token ids")):
        likelihood = words(run, tmp_path, f"eval.examples=[{tmp_path}/{name}]")
        assert main(["likelihood", *likelihood[1:]]) == 2 and message in capsys.readouterr().err
    assert main([*sampled, f"{tmp_path}/ids.jsonl"]) == 2 and "give --likelihood-draws 0" in capsys.readouterr().err
    assert main([*sampled, f"{tmp_path}/lines.txt", "tasks=[document]"]) == 2 and not (tmp_path / "out").exists()


def test_a_group_holds_about_as_many_batches_as_there_are_groups(monkeypatch):
    def sizes(number, batch_size, **fields):
        asked = [Asked(Example(f"e{i:04}", (Turn("user", ()),), "chat"), Prompt("", (1,) * 5), "") for i in range(number)]
        long = Asked(Example("long", (Turn("user", ()),), "chat"), Prompt("", (1,) * 50), "")
        decoder = Decoder(tiny_model(), Hybrid(), Blockwise(), DecodeSettings(max_tokens=15, **fields))
        return [len(group) for group in groups_of([*asked, long], decoder, batch_size)]

    assert sizes(3, 4) == [4] and sizes(35, 4) == [12, 12, 12] and sizes(2047, 4) == [64] * 32
    assert sizes(3, 4, batch_tokens=80) == [3, 1], "the long prompt would have let fewer of the others be decoded at a time"


def test_progress(monkeypatch, caplog):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with answering._Progress("many", 2, 50.0, quiet=False) as progress:
        progress.done(100)
        progress.done(0)
    assert "2/2" in sys.stderr.getvalue() and "s of speech per second" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with answering._Progress("many", 4, 0.0, quiet=False) as progress, caplog.at_level("INFO"):
        progress.done(0)
        progress._said -= 61
        progress.done(0)
    assert not sys.stderr.getvalue() and caplog.messages == ["many: 2 of 4 answers, 0 min left"]


def test_a_rank_that_is_gone_is_said_in_one_line(run, tmp_path, monkeypatch, capsys):
    as_rank(monkeypatch, 0, 2)

    def lost(self):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")

    monkeypatch.setattr(answering.Ranks, "barrier", lost)
    assert main(words(run, tmp_path)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ttt generate: ")]
    assert "another process of this call is gone" in line and "the same command goes on from there" in line
    assert partial_files(tmp_path / "many.generations.jsonl")


@pytest.mark.slow
def test_torchrun(run, whole, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ttt"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words(run, tmp_path)], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert records(tmp_path) == whole and not partial_files(tmp_path / "many.generations.jsonl")
    refused = subprocess.run(
        [*command, *words(run, tmp_path, "run.seed=3")], env=environment, capture_output=True, text=True, timeout=200
    )
    assert refused.returncode and refused.stderr.count("made with other settings (setting seed)") == 1
